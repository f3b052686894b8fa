//! Runs the host as a child process on the test guest.
#![allow(dead_code, reason = "each test uses a part of it")]

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

/// The component that all tests run.
pub fn guest() -> &'static Path {
    static GUEST: OnceLock<PathBuf> = OnceLock::new();
    GUEST.get_or_init(|| built("behalf_test_guest"))
}

/// The component that uses PostgreSQL.
pub fn postgres_guest() -> &'static Path {
    static GUEST: OnceLock<PathBuf> = OnceLock::new();
    GUEST.get_or_init(|| built("behalf_test_postgres_guest"))
}

/// What `scripts/build` made last.
fn built(name: &str) -> PathBuf {
    let file = runtime_tests::app::root().join(format!("target/wasm32-wasip2/release/{name}.wasm"));
    assert!(
        file.exists(),
        "{} is missing: run scripts/build",
        file.display()
    );
    file
}

/// A manifest for the guest: the component `web` on all routes.
pub fn manifest() -> String {
    manifest_of(guest())
}

/// A manifest for a component that was built otherwise.
pub fn manifest_of(guest: &Path) -> String {
    format!(
        r#"spin_manifest_version = 2
[application]
name = "test"
[variables]
problem = {{ default = "" }}
greeting = {{ default = "hello" }}
origin = {{ default = "" }}
[[trigger.http]]
route = "/..."
component = "web"
[component.web]
source = "{}"
key_value_stores = ["default"]
allowed_outbound_hosts = ["http://127.0.0.1:*", "{{{{ origin }}}}"]
[component.web.variables]
problem = "{{{{ problem }}}}"
greeting = "<{{{{ greeting }}}}>"
"#,
        guest.display()
    )
}

/// How to run the host.
pub struct Setup {
    /// The folder that it runs in, with its manifest.
    pub folder: TempDir,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    through: Vec<String>,
    is_unread: bool,
}

impl Setup {
    pub fn new(manifest: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("spin.toml"), manifest).unwrap();
        Self {
            folder,
            arguments: [
                "up",
                "--exit-on-stdin-close",
                "--lame-duck",
                "0s",
                "--listen",
                "127.0.0.1:0",
            ]
            .map(str::to_owned)
            .to_vec(),
            environment: Vec::new(),
            through: Vec::new(),
            is_unread: false,
        }
    }

    /// Reads nothing of what the host says, until [`Host::read_log`].
    pub fn unread(mut self) -> Self {
        self.is_unread = true;
        self
    }

    /// Runs the host by this program with these arguments.
    pub fn through(mut self, words: &[&str]) -> Self {
        self.through = words.iter().map(|it| (*it).to_owned()).collect();
        self
    }

    /// Lets the host have so many files open, and no more.
    pub fn open_files(self, most: u32) -> Self {
        let limited = format!("ulimit -n {most}; exec \"$0\" \"$@\"");
        self.through(&["/bin/sh", "-c", &limited])
    }

    /// Runs another command than `up`, with no arguments yet.
    pub fn command(mut self, name: &str) -> Self {
        self.arguments = vec![name.to_owned()];
        self
    }

    pub fn arg(mut self, arguments: &[&str]) -> Self {
        self.arguments
            .extend(arguments.iter().map(|it| (*it).to_owned()));
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    fn spawn(&self) -> Child {
        // Another may be named, to compare the two.
        let program =
            std::env::var_os("BEHALF_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_behalf").into());
        let mut command = match self.through.as_slice() {
            [] => Command::new(program),
            [through, arguments @ ..] => {
                let mut command = Command::new(through);
                command.args(arguments).arg(program);
                command
            }
        };
        command
            .current_dir(self.folder.path())
            .env_clear()
            // What has been compiled once is not compiled at every start.
            .env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"))
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .args(&self.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Runs a host that must not start; returns its exit code and what it said.
    pub fn fails(&self) -> (Option<i32>, String) {
        let mut child = self.spawn();
        let stdin = child.stdin.take();
        let output = child.wait_with_output().unwrap();
        drop(stdin);
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "",
            "standard output is for the address alone"
        );
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    }

    /// Runs a host until it serves.
    pub fn start(self) -> Host {
        let mut host = self.begin();
        let mut line = String::new();
        host.stdout.read_line(&mut line).unwrap();
        let Some(url) = line.strip_prefix("Serving ").map(str::trim_end) else {
            host.ended();
            panic!("the host does not start:\n{}", host.log());
        };
        host.url = url.to_owned();
        host
    }

    /// Runs a host without an HTTP trigger until it says `what`.
    pub fn start_without_address(self, what: &str) -> Host {
        let host = self.begin();
        host.log_with(what);
        host
    }

    fn begin(self) -> Host {
        let mut child = self.spawn();
        let mut host = Host {
            url: String::new(),
            stdin: child.stdin.take(),
            stdout: BufReader::new(child.stdout.take().unwrap()),
            stderr: child.stderr.take(),
            child,
            log: Arc::default(),
            reader: None,
            setup: self,
        };
        if !host.setup.is_unread {
            host.read_log();
        }
        host
    }
}

/// A host that serves.
pub struct Host {
    pub url: String,
    pub setup: Setup,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<std::process::ChildStdout>,
    stderr: Option<std::process::ChildStderr>,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Host {
    /// Reads what the host says from now on.
    pub fn read_log(&mut self) {
        let (log, stderr) = (Arc::clone(&self.log), self.stderr.take().unwrap());
        self.reader = Some(std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines() {
                let line = line.unwrap();
                let mut log = log.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        }));
    }

    /// Sends a GET request; returns status and text.
    pub async fn get(&self, path: &str) -> (StatusCode, String) {
        let (head, body) = self
            .send(Request::get(self.uri(path)).body(Bytes::new()).unwrap())
            .await
            .into_parts();
        (
            head.status,
            String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap(),
        )
    }

    /// The text of a GET request that must succeed.
    pub async fn text(&self, path: &str) -> String {
        let (status, text) = self.get(path).await;
        assert_eq!(status, StatusCode::OK, "{path}: {text}");
        text
    }

    /// Lets the component send a request to `to`.
    pub async fn sends(&self, to: &str) -> (StatusCode, String) {
        self.sends_within(to, 10_000).await
    }

    /// The same, and to wait for the first byte for so many milliseconds.
    pub async fn sends_within(&self, to: &str, milliseconds: u32) -> (StatusCode, String) {
        let request = Request::get(self.uri("/send"))
            .header("x-to", to)
            .header("x-first-byte", milliseconds);
        let (head, body) = self
            .send(request.body(Bytes::new()).unwrap())
            .await
            .into_parts();
        (
            head.status,
            String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap(),
        )
    }

    pub async fn send(&self, request: Request<Bytes>) -> Response<hyper::body::Incoming> {
        let client: Client<HttpConnector, Full<Bytes>> =
            Client::builder(TokioExecutor::new()).build_http();
        client.request(request.map(Full::new)).await.unwrap()
    }

    /// Opens a connection, and sends this.
    pub async fn connect(&self, begun: &[u8]) -> TcpStream {
        let address = self.url.strip_prefix("http://").unwrap();
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(begun).await.unwrap();
        stream
    }

    /// Sends this, and returns all that comes back before the connection ends.
    pub async fn exchange(&self, sent: &str) -> String {
        let mut heard = Vec::new();
        let mut stream = self.connect(sent.as_bytes()).await;
        let _ = stream.read_to_end(&mut heard).await;
        String::from_utf8_lossy(&heard).into_owned()
    }

    /// Sends a signal to the host that runs by another program ([`Setup::through`]).
    pub fn signal_inside(&self, name: &str) {
        let id = self.child.id();
        let inner = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
        let sent = Command::new("kill")
            .args(["-s", name, inner.trim()])
            .status();
        assert!(sent.unwrap().success());
    }

    /// What it ran with, to run it again.
    pub fn into_setup(mut self) -> Setup {
        std::mem::replace(&mut self.setup, Setup::new(""))
    }

    /// The host's process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn uri(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    /// What the host said so far, once it said `what`.
    pub fn log_with(&self, what: &str) -> String {
        self.log_with_times(what, 1)
    }

    /// The log once `what` has been found in it so many times.
    pub fn log_with_times(&self, what: &str, times: usize) -> String {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let log = self.log();
            let found = log.matches(what).count();
            if found >= times {
                return log;
            }
            assert!(
                Instant::now() < end,
                "{what:?} is {found} times, not {times}, in:\n{log}"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Sends a signal by name.
    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-s", name, &id])
                .status()
                .unwrap()
                .success()
        );
    }

    /// Closes the host's standard input.
    pub fn close_stdin(&mut self) {
        drop(self.stdin.take());
    }

    /// Waits until the host has ended; returns its exit code.
    pub fn ended(&mut self) -> Option<i32> {
        let end = Instant::now() + Duration::from_mins(1);
        let status: ExitStatus = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(
                Instant::now() < end,
                "the host does not end:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        };
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
            let mut rest = String::new();
            self.stdout.read_to_string(&mut rest).unwrap();
            assert_eq!(rest, "", "standard output is for the address alone");
        }
        status.code()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.close_stdin();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A certificate authority, made for a test.
pub struct Authority {
    /// Its certificate.
    pub pem: String,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new([]).unwrap();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pem = parameters.self_signed(&key).unwrap().pem();
        Self {
            pem,
            issuer: rcgen::Issuer::new(parameters, key),
        }
    }

    /// Writes a certificate for `name` and its key into `folder`, as `cert.pem` and `key.pem`.
    pub fn write(&self, folder: &Path, name: &str) {
        let key = rcgen::KeyPair::generate().unwrap();
        let parameters = rcgen::CertificateParams::new([name.to_owned()]).unwrap();
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(folder.join("cert.pem"), certificate.pem()).unwrap();
        std::fs::write(folder.join("key.pem"), key.serialize_pem()).unwrap();
    }

    /// The text at `path` of a server with a certificate of this authority, over TLS and `protocol`.
    pub async fn ask(&self, address: &str, protocol: &str, path: &str) -> String {
        use tokio_rustls::rustls::pki_types::pem::PemObject as _;
        use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
        use tokio_rustls::rustls::{ClientConfig, RootCertStore};
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap())
            .unwrap();
        let mut tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
        let stream = TokioIo::new(connector.connect(name, stream).await.unwrap());
        let request = Request::get(format!("https://{address}{path}")).header("host", address);
        let request = request.body(Full::new(Bytes::new())).unwrap();
        let response = if protocol == "h2" {
            let (mut send, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), stream)
                    .await
                    .unwrap();
            tokio::spawn(connection);
            send.send_request(request).await.unwrap()
        } else {
            let (mut send, connection) =
                hyper::client::conn::http1::handshake(stream).await.unwrap();
            tokio::spawn(connection);
            let (mut parts, body) = request.into_parts();
            parts.uri = path.parse().unwrap();
            send.send_request(Request::from_parts(parts, body))
                .await
                .unwrap()
        };
        let text = response.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(text.to_vec()).unwrap()
    }

    /// Starts a server with a certificate for `name` that speaks HTTP/2 alone and says what it was asked; returns its
    /// port.
    pub async fn serve(&self, name: &str) -> u16 {
        let key = rcgen::KeyPair::generate().unwrap();
        let parameters = rcgen::CertificateParams::new([name.to_owned()]).unwrap();
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        let mut tls = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let stream = listener.accept().await.unwrap().0;
                let Ok(stream) = acceptor.accept(stream).await else {
                    continue;
                };
                let service =
                    hyper::service::service_fn(async |request: Request<hyper::body::Incoming>| {
                        let host = if request.headers().contains_key("host") {
                            "a"
                        } else {
                            "no"
                        };
                        let text = format!(
                            "{:?} {} {host} host header",
                            request.version(),
                            request.uri()
                        );
                        Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from(
                            text,
                        ))))
                    });
                let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service);
                tokio::spawn(connection);
            }
        });
        port
    }
}

/// Stands between clients and a server on this machine, and can fall silent: as a firewall does that forgets connections.
pub struct Relay {
    pub port: u16,
    silence: tokio::sync::watch::Sender<()>,
}

impl Relay {
    pub async fn new(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (silence, _) = tokio::sync::watch::channel(());
        let silences = silence.clone();
        tokio::spawn(async move {
            loop {
                let mut near = listener.accept().await.unwrap().0;
                let mut silent = silences.subscribe();
                tokio::spawn(async move {
                    let mut far = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = silent.changed() => std::future::pending().await,
                    }
                });
            }
        });
        Self { port, silence }
    }

    /// Passes nothing on any more between those who are connected, and does not tell them.
    pub fn fall_silent(&self) {
        self.silence.send_replace(());
    }
}

/// Starts a proxy that connects (RFC 9110, section 9.3.6) to this machine, whatever name it is told, if it hears the right
/// password; returns its port, and what it is asked for.
pub async fn proxy() -> (u16, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (asked, asking) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let mut near = listener.accept().await.unwrap().0;
            let asked = asked.clone();
            tokio::spawn(async move {
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") {
                    head.push(char::from(near.read_u8().await.unwrap()));
                }
                let line = head.lines().next().unwrap().to_owned();
                let port = line.split([':', ' ']).nth(2).unwrap();
                let mut far = TcpStream::connect(format!("127.0.0.1:{port}"))
                    .await
                    .unwrap();
                let answer = if head.contains("Basic dXNlcjpzZWNyZXQ=") {
                    "HTTP/1.1 200 OK\r\n\r\n"
                } else {
                    "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"
                };
                asked.send(line).unwrap();
                near.write_all(answer.as_bytes()).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    (port, asking)
}
