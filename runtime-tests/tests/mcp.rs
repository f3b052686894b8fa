//! `scripts/examples/mcp`: a tool of an agent reads a calendar, and nothing that reaches the tool is a token of it. The agent is the
//! client of the MCP SDK.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use runtime_tests::app::{self, App, root};
use runtime_tests::emulators::{EVENT, Options, Target};
use runtime_tests::leaks::Secrets;
use runtime_tests::peers;
use runtime_tests::scene::Scene;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

type Result<T = ()> = anyhow::Result<T>;

#[tokio::test(flavor = "multi_thread")]
async fn an_agents_tool_reads_a_calendar_and_never_holds_a_token_of_it() -> Result {
    peers::installed()?;
    let scene = Scene::with(Options::default(), app::Options::one_instance).await?;
    let wire = Wire::to(scene.app.address()).await?;
    let folder = tempfile::tempdir()?;
    let mut command = Command::new("node");
    command
        .arg(root().join("target/peers/mcp/server.mjs"))
        .env("BEHALF_URL", format!("http://{}", wire.address))
        .env("PORT", "0");
    let tool = App::run(command, folder.path()).await?;
    let url = format!("{}/mcp", tool.url());
    let ask = |token: Option<String>, arguments: Value| {
        let call = json!({"name": "list_events", "arguments": arguments});
        let input = json!({"url": url, "token": token, "calls": [call]});
        tokio::task::spawn_blocking(move || peers::node("mcp_client.mjs", &[], &input))
    };
    let user = || Some(scene.emulators.caller().mint());

    // Whoever has no token does not come to the tool, and whoever is not enrolled is told so by it.
    let refused = ask(None, json!({})).await??;
    assert!(refused["error"].is_string(), "{refused}");
    let answered = ask(user(), json!({})).await??;
    assert_eq!(
        answered["tools"],
        json!([{"name": "list_events", "readOnly": true}])
    );
    let result = &answered["results"][0];
    assert_eq!(result["isError"], true, "{answered}");
    assert!(
        result["text"].as_str().unwrap().contains("enrol"),
        "{answered}"
    );

    scene.enrol().await?;
    scene.emulators.clear_journal();
    let answered = ask(user(), json!({"most": 5})).await??;
    let result = &answered["results"][0];
    assert_eq!(result["isError"], false, "{answered}");
    let events =
        json!([{"subject": EVENT, "start": "2027-01-11T09:00:00", "end": "2027-01-11T10:30:00"}]);
    assert_eq!(result["structured"]["events"], events, "{answered}");
    let asked: Vec<_> = scene
        .emulators
        .journal()
        .iter()
        .map(|it| it.target)
        .collect();
    assert_eq!(asked, [Target::EntraToken, Target::Downstream]);

    // Another user sees nothing of it, and neither does the user once the access is removed.
    let other = scene
        .emulators
        .caller()
        .user(runtime_tests::emulators::OTHER_USER)
        .mint();
    let answered = ask(Some(other), json!({})).await??;
    assert_eq!(answered["results"][0]["isError"], true, "{answered}");
    let removed = scene
        .call(reqwest::Method::DELETE, "/v1/me/refresh-token")
        .await?;
    assert_eq!(removed.status, 204);
    let answered = ask(user(), json!({})).await??;
    assert_eq!(answered["results"][0]["isError"], true, "{answered}");

    // All that behalf ever sent to the tool, and all that the tool wrote.
    let received = wire.received();
    assert!(received.contains(EVENT), "the wire was looked at");
    let secrets = Secrets::new(&scene.emulators.secrets());
    assert_eq!(secrets.found_in(&received), None);
    let written = tool.stop().await?.join("\n");
    assert_eq!(secrets.found_in(&written), None, "{written}");
    scene.end().await?;
    Ok(())
}

/// A connection to the app for each that is made to it, and all that the app sends there.
struct Wire {
    address: SocketAddr,
    received: Arc<Mutex<Vec<u8>>>,
}

impl Wire {
    async fn to(app: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let received = Arc::<Mutex<Vec<u8>>>::default();
        let kept = Arc::clone(&received);
        tokio::spawn(async move {
            while let Ok((tool, _)) = listener.accept().await {
                let app = TcpStream::connect(app).await?;
                let (mut from_tool, mut to_tool) = tool.into_split();
                let (mut from_app, mut to_app) = app.into_split();
                tokio::spawn(async move { tokio::io::copy(&mut from_tool, &mut to_app).await });
                let kept = Arc::clone(&kept);
                tokio::spawn(async move {
                    let mut part = vec![0; 65_536];
                    loop {
                        let bytes = from_app.read(&mut part).await?;
                        if bytes == 0 {
                            return std::io::Result::Ok(());
                        }
                        kept.lock().unwrap().extend_from_slice(&part[..bytes]);
                        to_tool.write_all(&part[..bytes]).await?;
                    }
                });
            }
            Result::Ok(())
        });
        Ok(Self { address, received })
    }

    fn received(&self) -> String {
        String::from_utf8_lossy(&self.received.lock().unwrap()).into_owned()
    }
}
