//! Tells the service manager how this process is, if it is systemd and wants to know (`sd_notify(3)`).

use sd_notify::NotifyState;

/// The app is served.
pub(crate) fn ready() {
    tell(NotifyState::Ready);
}

/// The process will end.
pub(crate) fn stopping() {
    tell(NotifyState::Stopping);
}

fn tell(state: NotifyState<'_>) {
    // Nobody there, or somebody who does not listen, is no reason to stop serving.
    let _ = sd_notify::notify(&[state]);
}
