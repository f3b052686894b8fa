//! The image for containers runs as it is written: unpacked, with its own user, on a root that nobody can write but for `/data`,
//! and with nothing else in it. It needs no engine for containers: namespaces are enough.
//!
//! `scripts/dist` runs it on the image that it made (`BEHALF_IMAGE`). Otherwise the image is made of the host that the other
//! tests run, by the same script; that host is not static, so its libraries are put beside it.
#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use reqwest::{Method, StatusCode};
use runtime_tests::app::{App, lay_out_release, root, said};
use runtime_tests::emulators::{self, Emulators};
use runtime_tests::scene::Scene;
use serde_json::{Value, json};
use tempfile::TempDir;

type Result = anyhow::Result<()>;

/// The image's user.
const NONROOT: u32 = 65532;

#[tokio::test(flavor = "multi_thread")]
async fn the_image_serves_as_its_own_user_on_a_root_that_is_read_only() -> Result {
    let image = Image::unpack()?;
    let emulators = Emulators::start(emulators::Options::default()).await?;
    let config = &image.config["config"];
    assert_eq!(config["User"], "65532:65532");

    let app = image.start(&emulators).await?;
    let scene = Scene::of(emulators, app);
    let answer = scene.call(Method::PUT, "/v1/me").await?;
    assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
    let answer = scene.call(Method::POST, "/v1/me/access-token").await?;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");

    // The store and the compiled components, for that user alone.
    for (name, mode) in [("sqlite_key_value.db", 0o600), ("compiled", 0o700)] {
        let found = fs::metadata(image.data().join(name)).context(name)?;
        assert_eq!(found.permissions().mode() & 0o777, mode, "{name}");
        assert_eq!(found.uid(), image.user, "{name}");
    }

    // What an engine would ask, as often as the image says.
    let words = texts(&config["Healthcheck"]["Test"]);
    let (kind, words) = words.split_first().context("a check")?;
    assert_eq!(kind, "CMD");
    let listen = scene.app.address().to_string();
    let healthy = |listen: &str| {
        let mut check = image.command(words);
        check.env("SPIN_HTTP_LISTEN_ADDR", listen);
        check.output()
    };
    let output = healthy(&listen)?;
    assert!(output.status.success(), "{output:?}");
    assert!(!healthy("127.0.0.1:1")?.status.success());

    // A new container on the same volume has what was acknowledged.
    let Scene { emulators, app, .. } = scene;
    app.stop().await?;
    let app = image.start(&emulators).await?;
    let scene = Scene::of(emulators, app);
    let answer = scene.call(Method::GET, "/v1/me").await?;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    scene.end().await?;
    Ok(())
}

#[test]
fn the_image_has_nothing_that_it_does_not_need() -> Result {
    let image = Image::unpack()?;
    let mut names: Vec<_> = image.entries.iter().map(String::as_str).collect();
    names.sort_unstable();
    let expected = [
        "./app/",
        "./app/LICENSE",
        "./app/behalf",
        "./app/behalf_cron.wasm",
        "./app/behalf_http.wasm",
        "./app/behalf_http_postgres.wasm",
        "./app/behalf_vault.wasm",
        "./app/spin-postgres.toml",
        "./app/spin.toml",
        "./data/",
        "./etc/",
        "./etc/group",
        "./etc/passwd",
        "./tmp/",
    ];
    assert_eq!(names, expected);
    // Who gets a volume for /data gets it with this owner, and can write there.
    let listing = image.listing.lines();
    let data: Vec<_> = listing.filter(|line| line.ends_with("./data/")).collect();
    assert!(
        matches!(data.as_slice(), [line] if line.starts_with("drwx------ 65532/65532 ")),
        "{data:?}"
    );
    let others = image
        .listing
        .lines()
        .filter(|line| !line.ends_with("./data/"));
    for line in others {
        let (mode, rest) = line.split_once(' ').context("a mode")?;
        assert!(rest.starts_with("0/0 "), "{line}");
        let for_all = line.ends_with("./tmp/");
        assert!(for_all || !mode[5..].contains('w'), "{line}");
        assert!(!mode.contains('s'), "{line}");
    }
    Ok(())
}

#[test]
fn the_same_files_make_the_same_image() -> Result {
    let folder = tempfile::tempdir()?;
    let app = folder.path().join("app");
    fs::create_dir(&app)?;
    for name in ["LICENSE", "behalf", "behalf_vault.wasm", "spin.toml"] {
        fs::write(app.join(name), name)?;
    }
    let index = |name: &str| {
        let out = folder.path().join(name);
        write_image(&app, &out)?;
        anyhow::Ok(fs::read_to_string(out.join("index.json"))?)
    };
    let first = index("one")?;
    assert_eq!(first, index("other")?);
    fs::write(app.join("behalf"), "another")?;
    assert_ne!(first, index("other")?);
    Ok(())
}

/// An image, and what is in it.
struct Image {
    _folder: TempDir,
    /// What a container sees as `/`.
    root: PathBuf,
    config: Value,
    entries: Vec<String>,
    listing: String,
    /// Who its processes are outside.
    user: u32,
}

impl Image {
    fn unpack() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        // Its user has to get in.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
        let given = std::env::var_os("BEHALF_IMAGE").map(PathBuf::from);
        let layout = match &given {
            Some(layout) => layout.clone(),
            None => built(folder.path())?,
        };
        let layout = layout.as_path();
        assert_eq!(
            json_file(&layout.join("oci-layout"))?,
            json!({ "imageLayoutVersion": "1.0.0" })
        );
        let index = json_file(&layout.join("index.json"))?;
        let manifest = json_file(&blob(layout, &index["manifests"][0])?)?;
        let config = json_file(&blob(layout, &manifest["config"])?)?;
        let layer = blob(layout, &manifest["layers"][0])?;
        assert_eq!(manifest["layers"].as_array().map(Vec::len), Some(1));
        // By it engines tell whether they have unpacked it right.
        let plain = Command::new("gzip")
            .args(["--decompress", "--stdout"])
            .arg(&layer)
            .output()?;
        let tar = folder.path().join("layer.tar");
        fs::write(&tar, plain.stdout)?;
        assert_eq!(config["rootfs"]["diff_ids"], json!([digest(&tar)?]));

        let listing = said(
            Command::new("tar")
                .args(["--list", "--verbose", "--numeric-owner", "--file"])
                .arg(&tar),
        )?;
        let entries = said(Command::new("tar").args(["--list", "--file"]).arg(&tar))?;
        let root = folder.path().join("root");
        fs::create_dir(&root)?;
        // As root it keeps the owners; others own everything, and are the image's user in a namespace.
        let mut unpack = Command::new("tar");
        unpack.args(["--extract", "--same-permissions", "--numeric-owner"]);
        said(unpack.arg("--file").arg(&tar).arg("--directory").arg(&root))?;
        let own = fs::metadata(&root)?.uid();
        let image = Self {
            _folder: folder,
            root,
            config,
            entries: entries.lines().map(str::to_owned).collect(),
            listing,
            user: if own == 0 { NONROOT } else { own },
        };
        if given.is_none() {
            image.add_libraries()?;
        }
        // What engines add.
        for name in ["proc", "dev"] {
            fs::create_dir(image.root.join(name))?;
        }
        fs::write(image.root.join("etc/hosts"), "127.0.0.1 localhost\n")?;
        Ok(image)
    }

    fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    async fn start(&self, emulators: &Emulators) -> anyhow::Result<App> {
        let config = &self.config["config"];
        let words = texts(&config["Entrypoint"]);
        let mut command = self.command(&words);
        // So that nothing is left of it, and for a port of its own.
        command.args(["--exit-on-stdin-close", "--lame-duck", "0s", "-c", "http"]);
        command.env("SPIN_HTTP_LISTEN_ADDR", "127.0.0.1:0");
        for (name, value) in emulators.settings() {
            command.env(format!("SPIN_VARIABLE_{}", name.to_uppercase()), value);
        }
        App::run(command.into(), &self.data()).await
    }

    /// A process of a container: it sees the image's files and can write in `/data` alone.
    fn command(&self, words: &[String]) -> Command {
        let config = &self.config["config"];
        let mut command = Command::new("unshare");
        let user: &[_] = if self.user == NONROOT {
            &["--setuid=65532", "--setgid=65532"]
        } else {
            command.args([
                "--user",
                "--map-user=65532",
                "--map-group=65532",
                "--keep-caps",
            ]);
            &[]
        };
        command.args(["--mount", "sh", "-euc", ENTER, "sh"]);
        command.arg(&self.root);
        command.arg(format!("--wd={}", config["WorkingDir"].as_str().unwrap()));
        command.args(user).args(words);
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        for variable in texts(&config["Env"]) {
            let (name, value) = variable.split_once('=').unwrap();
            command.env(name, value);
        }
        command
    }

    /// A host that was built for tests takes its libraries from this machine.
    fn add_libraries(&self) -> Result {
        let used = said(Command::new("ldd").arg(self.root.join("app/behalf")))?;
        for word in used.split_whitespace().filter(|it| it.starts_with('/')) {
            let to = self.root.join(word.trim_start_matches('/'));
            fs::create_dir_all(to.parent().context("a folder")?)?;
            fs::copy(word, to)?;
        }
        Ok(())
    }
}

/// Makes a root of a folder, which nobody can write but for `/data`, and runs a program there.
const ENTER: &str = r#"
root=$1
shift
mount --rbind "$root" "$root"
mount --bind "$root/data" "$root/data"
mount --rbind /proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -o remount,bind,ro "$root"
exec unshare --root="$root" "$@"
"#;

/// Writes an image of the host that the other tests run.
fn built(folder: &Path) -> anyhow::Result<PathBuf> {
    let app = folder.join("app");
    lay_out_release(&app)?;
    let out = folder.join("image");
    write_image(&app, &out)?;
    Ok(out)
}

fn write_image(app: &Path, out: &Path) -> Result {
    said(Command::new(root().join("scripts/image")).arg(app).arg(out)).map(drop)
}

/// The file of a descriptor, which has to be as it says.
fn blob(layout: &Path, descriptor: &Value) -> anyhow::Result<PathBuf> {
    let expected = descriptor["digest"].as_str().context("a digest")?;
    let file = layout.join("blobs").join(expected.replace(':', "/"));
    assert_eq!(digest(&file)?, expected);
    assert_eq!(descriptor["size"], fs::metadata(&file)?.len());
    Ok(file)
}

fn digest(file: &Path) -> anyhow::Result<String> {
    let said = said(Command::new("sha256sum").arg(file))?;
    Ok(format!(
        "sha256:{}",
        said.split(' ').next().unwrap_or_default()
    ))
}

fn json_file(file: &Path) -> anyhow::Result<Value> {
    Ok(serde_json::from_slice(&fs::read(file)?)?)
}

fn texts(list: &Value) -> Vec<String> {
    let texts = list.as_array().into_iter().flatten();
    texts
        .filter_map(|it| Some(it.as_str()?.to_owned()))
        .collect()
}
