//! A path of a call, and what may be called, on two lines: what is sent cannot be read in another way, and a pattern that matches
//! what came matches what is sent.
#![no_main]

use behalf_core::vault::call::path::Path;
use behalf_core::vault::call::pattern::Pattern;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let (came, pattern) = text.split_once('\n').unwrap_or((text, "GET /**"));
    let Ok(path) = Path::parse(came) else { return };
    let sent = path.to_string();
    let again = Path::parse(&sent).expect("what is sent is a path");
    assert_eq!(again, path);
    assert_eq!(again.to_string(), sent);
    assert!(sent.bytes().all(|byte| byte.is_ascii_graphic()));
    let lower = sent.to_ascii_lowercase();
    for never in [
        "//", "/./", "/../", "%2f", "%5c", "\\", ";", "%3b", "%2e", "%00", "%25", "/$batch",
    ] {
        assert!(!lower.contains(never), "{never} in {sent}");
    }
    assert!(!lower.ends_with("/.") && !lower.ends_with("/..") && !lower.ends_with('/'));
    if let Ok(pattern) = Pattern::parse(pattern) {
        let method = pattern.as_str().split(' ').next().unwrap_or_default();
        let method = http::Method::from_bytes(method.as_bytes()).expect("a method");
        assert_eq!(
            pattern.matches(&method, &path),
            pattern.matches(&method, &again)
        );
    }
});
