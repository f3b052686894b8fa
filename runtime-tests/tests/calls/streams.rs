//! Bodies of any length, in both directions, and what becomes of them when somebody stops or goes away.

use anyhow::Context as _;
use tokio::sync::Barrier;

use super::*;

/// How much goes through each call, each way: as many of them at once as one instance serves.
const LENGTHS: [u64; 16] = {
    let mut lengths = [32 << 20; 16];
    lengths[0] = 1 << 30;
    lengths
};
/// What the app may take in memory besides what it has when it is idle, in bytes: instance, host and all that is under way.
const MOST: u64 = 64 << 20;

/// Bytes of which each place tells where it is: what is lost, doubled or swapped is another text.
struct Text(Vec<u8>);

impl Text {
    /// Of a length that no part has.
    const LENGTH: usize = 1_000_003;

    fn new() -> Self {
        let mut state = 1_u32;
        let bytes = (0..Self::LENGTH + PART).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            u8::try_from(state >> 24).unwrap()
        });
        let mut bytes: Vec<_> = bytes.collect();
        bytes.copy_within(..PART, Self::LENGTH);
        Self(bytes)
    }

    /// The next part from a place on, of a body of this length.
    fn part(&self, at: u64, length: u64) -> &[u8] {
        let from = usize::try_from(at % Self::LENGTH as u64).unwrap();
        let left = usize::try_from(length - at).unwrap_or(usize::MAX);
        &self.0[from..from + left.min(PART)]
    }

    async fn write(&self, stream: &mut (impl AsyncWriteExt + Unpin), length: u64) -> Result {
        let mut at = 0;
        while at < length {
            let part = self.part(at, length);
            stream.write_all(part).await?;
            at += part.len() as u64;
        }
        Ok(())
    }

    async fn read(&self, stream: &mut (impl AsyncReadExt + Unpin), length: u64) -> Result {
        let (mut at, mut read) = (0, vec![0; PART]);
        while at < length {
            let expected = self.part(at, length);
            let bytes = timeout(PATIENCE, stream.read(&mut read[..expected.len()])).await??;
            anyhow::ensure!(bytes > 0, "it ends after {at} bytes of {length}");
            anyhow::ensure!(read[..bytes] == expected[..bytes], "other bytes near {at}");
            at += bytes as u64;
        }
        Ok(())
    }
}

/// The app's process.
fn process(scene: &Scene) -> anyhow::Result<procfs::process::Process> {
    scene.app.processes()?.pop().context("it is gone")
}

/// Its memory, in bytes: now, and the most so far.
fn resident(scene: &Scene) -> anyhow::Result<(u64, u64)> {
    let status = process(scene)?.status()?;
    let bytes = |kibibytes: Option<u64>| Some(kibibytes? * 1024);
    bytes(status.vmrss)
        .zip(bytes(status.vmhwm))
        .context("no memory is told")
}

/// Each with its own bytes, compared one by one. On Spin the memory is not looked at: there are instances for each call.
#[tokio::test(flavor = "multi_thread")]
async fn a_gibibyte_each_way_passes_through_one_instance_of_bounded_memory() -> Result {
    let (scene, socket) = with_socket().await?;
    // What is compiled and cached is there.
    let (answer, ()) = tokio::join!(scene.call(Method::GET, "/v1/me/call/raw/x"), async {
        let (mut api, _) = socket.accept().await.unwrap();
        head(&mut api).await.unwrap();
        let answer = b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n";
        api.write_all(answer).await.unwrap();
    });
    assert_eq!(answer?.status, 204);
    let (before, _) = resident(&scene)?;
    let (text, scene) = (Arc::new(Text::new()), Arc::new(scene));
    // A connection to the API may take five seconds: all are made before the machine is busy.
    let connected = Arc::new(Barrier::new(2 * LENGTHS.len()));
    let mut tasks = JoinSet::<Result>::new();
    for length in LENGTHS {
        let (text, scene) = (Arc::clone(&text), Arc::clone(&scene));
        let connected = Arc::clone(&connected);
        tasks.spawn(async move {
            let header = format!("content-length: {length}\r\n");
            let caller = begin(&scene, "POST /v1/me/call/raw/x", &header).await?;
            connected.wait().await;
            let (mut read, mut write) = caller.into_split();
            let answered = async {
                let answered = head(&mut read).await?;
                assert!(answered.starts_with("HTTP/1.1 200"), "{answered}");
                text.read(&mut read, length).await
            };
            tokio::try_join!(text.write(&mut write, length), answered)?;
            Ok(())
        });
    }
    for _ in LENGTHS {
        let (mut api, _) = timeout(PATIENCE, socket.accept()).await??;
        let (text, connected) = (Arc::clone(&text), Arc::clone(&connected));
        tasks.spawn(async move {
            connected.wait().await;
            let asked = head(&mut api).await?.to_ascii_lowercase();
            let length = asked.split("\r\ncontent-length: ").nth(1);
            let length = length.and_then(|length| length.split("\r\n").next());
            let length = length.context("a length")?.parse()?;
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
            api.write_all(answer.as_bytes()).await?;
            let (mut read, mut write) = api.into_split();
            let read = text.read(&mut read, length);
            tokio::try_join!(text.write(&mut write, length), read)?;
            Ok(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    let scene = Arc::into_inner(scene).unwrap();
    let (_, most) = resident(&scene)?;
    let most = most.saturating_sub(before);
    println!(
        "{} MiB besides the {} MiB of before",
        most >> 20,
        before >> 20
    );
    assert!(
        runtime_tests::app::is_on_spin() || most < MOST,
        "{most} bytes"
    );
    scene.end().await?;
    Ok(())
}

/// A call that its caller gives up, at each of the places where one can: whoever is called is let go, and nothing stays behind.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_given_up_leaves_nothing_behind() -> Result {
    let (scene, socket) = with_socket().await?;
    let mut settled = Vec::new();
    for _ in 0..12 {
        // While it is sent, before the answer has begun, and while that comes.
        let mut caller = begin(
            &scene,
            "POST /v1/me/call/raw/x",
            "content-length: 9000000\r\n",
        )
        .await?;
        caller.write_all(&[b'x'; 1000]).await?;
        let (mut api, _) = timeout(PATIENCE, socket.accept()).await??;
        head(&mut api).await?;
        drop(caller);
        is_let_go(api).await?;

        let caller = begin(&scene, "GET /v1/me/call/raw/x", "").await?;
        let (mut api, _) = timeout(PATIENCE, socket.accept()).await??;
        head(&mut api).await?;
        drop(caller);
        settled.push(api);

        let mut caller = begin(&scene, "GET /v1/me/call/raw/x", "").await?;
        let (mut api, _) = timeout(PATIENCE, socket.accept()).await??;
        head(&mut api).await?;
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 9000000\r\n\r\n";
        api.write_all(answer.as_bytes()).await?;
        head(&mut caller).await?;
        drop(caller);
        let part = [b'x'; 1000];
        let written = timeout(PATIENCE, async {
            while api.write_all(&part).await.is_ok() {
                tokio::task::yield_now().await;
            }
        });
        written.await?;
    }
    // Before the head the deadline ends it, if the host has not before.
    for api in settled {
        is_let_go(api).await?;
    }
    // What is left is what any two calls leave: connections that are kept for the next.
    let mut left = usize::MAX;
    for _ in 0..100 {
        left = process(&scene)?.fd_count()?;
        if left < 40 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!("{left} files and connections are open");
    assert!(left < 40, "{left} files and connections are open");
    scene.end().await?;
    Ok(())
}

/// Waits until the app has closed its connection to the API.
async fn is_let_go(mut api: TcpStream) -> Result {
    rest(&mut api).await?;
    Ok(())
}

/// Nothing comes for a minute, from the API or from the caller: what is under way is broken off, on both sides.
#[tokio::test(flavor = "multi_thread")]
async fn after_the_head_a_body_that_stops_is_broken_off() -> Result {
    let (scene, socket) = with_socket().await?;
    // Of the answer no more comes.
    let mut caller = begin(&scene, "GET /v1/me/call/raw/x", "").await?;
    let (mut api, _) = socket.accept().await?;
    head(&mut api).await?;
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf";
    api.write_all(answer.as_bytes()).await?;
    head(&mut caller).await?;
    // Of the request no more comes, and the API has begun to answer.
    let mut sender = begin(&scene, "POST /v1/me/call/raw/x", "content-length: 100\r\n").await?;
    sender.write_all(b"half").await?;
    let (mut taker, _) = socket.accept().await?;
    head(&mut taker).await?;
    let answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    taker.write_all(answer.as_bytes()).await?;
    head(&mut sender).await?;
    // Both APIs are let go, and the caller is told that it was not all.
    let (_, arrived, answered) =
        tokio::try_join!(late(&mut api), late(&mut taker), late(&mut caller))?;
    assert_eq!(arrived, b"half", "no whole body");
    assert_eq!(answered, b"half", "no whole body");
    scene.end().await?;
    Ok(())
}

/// All that comes until the connection ends, which is after a minute.
async fn late(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    let _ = timeout(2 * PATIENCE, stream.read_to_end(&mut all)).await?;
    Ok(all)
}
