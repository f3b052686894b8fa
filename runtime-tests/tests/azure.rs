//! What `scripts/azure` deploys is judged without Azure: its templates by Microsoft's management models, its calls of `az` by the Azure
//! CLI's own parser, its pipelines by their schemas; and what can run is run.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a panic is a failed test"
)]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use runtime_tests::app::root;
use runtime_tests::peers::{installed, python};
use serde_json::{Value, json};

type Result = anyhow::Result<()>;

const FORMS: &str = "azure_templates.py";

fn folder() -> PathBuf {
    root().join("scripts/azure")
}

fn template() -> anyhow::Result<Value> {
    let text = fs::read_to_string(folder().join("azuredeploy.json"))?;
    Ok(serde_json::from_str(&text)?)
}

/// What a template deploys with these parameters, and its outputs; each resource is one as its model has it.
fn deployed(template: &Value, parameters: &Value) -> anyhow::Result<Value> {
    let mut parameters = parameters.clone();
    parameters["alertEmail"] = json!("operator@example.com");
    let given = json!({ "template": template, "parameters": parameters });
    let said = python(FORMS, &["deploy"], &given.to_string())?;
    Ok(serde_json::from_str(&said)?)
}

fn of_type<'a>(deployed: &'a Value, kind: &str) -> Vec<&'a Value> {
    let resources = deployed["resources"].as_array().unwrap().iter();
    resources.filter(|it| it["type"] == kind).collect()
}

#[test]
fn both_templates_are_the_same() -> Result {
    let bicep = fs::read_to_string(folder().join("main.bicep"))?;
    let place = tempfile::tempdir()?;
    let compiled = |text: &str| {
        let file = place.path().join("main.bicep");
        fs::write(&file, text)?;
        let said = python(FORMS, &["compile", file.to_str().unwrap()], "")?;
        anyhow::Ok(serde_json::from_str::<Value>(&said)?)
    };
    let committed = template()?;
    assert_eq!(
        compiled(&bicep)?,
        committed,
        "make azuredeploy.json anew: runtime-tests/peers/azure_templates.py compile scripts/azure/main.bicep"
    );
    // Whatever changes in one of them is seen.
    for (from, to) in [
        ("param replicas int = 2", "param replicas int = 3"),
        ("secrets: ['set']", "secrets: ['set', 'get']"),
        (
            "ledger == 'postgres'",
            "ledger != 'postgres' || ledger == 'postgres'",
        ),
        ("= if (isOnRoles && hasRotator)", "= if (isOnRoles)"),
        ("vaults/secrets/update/action", "vaults/secrets/*"),
        ("@secure()\nparam sweepKey", "param sweepKey"),
        ("port: 3000", "port: 3001"),
    ] {
        assert!(bicep.contains(from), "{from}");
        let other = compiled(&bicep.replacen(from, to, 1));
        assert!(
            other.is_err() || other.is_ok_and(|it| it != committed),
            "{from}"
        );
    }
    assert!(compiled(&bicep.replacen("resource vault", "resource", 1)).is_err());
    Ok(())
}

#[test]
fn every_deployment_is_as_the_models_have_it() -> Result {
    let template = template()?;
    for permissions in ["rbac", "access-policies"] {
        for host in [
            json!({}),
            json!({"image": "i", "ledger": "sqlite"}),
            json!({"image": "i", "registry": "r.azurecr.io", "settings": {"cors_origins": "https://app.example"}}),
            json!({"image": "i", "postgresPassword": "p", "replicas": 3}),
        ] {
            for who in [
                json!({}),
                json!({"rotatorPrincipalId": "R", "retirerPrincipalId": "T", "outsidePrincipalId": "O"}),
                json!({"rotatorIssuer": "https://oidc.example", "rotatorSubject": "s"}),
            ] {
                let mut parameters = host.clone();
                parameters["permissions"] = json!(permissions);
                let more = who.as_object().unwrap().clone();
                parameters.as_object_mut().unwrap().extend(more);
                check(&deployed(&template, &parameters)?, &parameters);
            }
        }
    }
    // A template that is not right is refused.
    let wrong = |pointer: &str, value: Value| {
        let mut template = template.clone();
        *template.pointer_mut(pointer).unwrap() = value;
        deployed(&template, &json!({ "image": "i" }))
            .unwrap_err()
            .to_string()
    };
    let at = |kind: &str| {
        let mut all = template["resources"].as_array().unwrap().iter();
        all.position(|it| it["type"] == kind).unwrap()
    };
    let vault = at("Microsoft.KeyVault/vaults");
    let said = wrong(
        &format!("/resources/{vault}/properties/sku"),
        json!({"family": "B", "name": "standard"}),
    );
    assert!(said.contains("family"), "{said}");
    let said = wrong(
        &format!("/resources/{vault}/properties"),
        json!({"sku": {"family": "A", "name": "standard"}, "tenantId": "t", "purge": true}),
    );
    assert!(said.contains("purge is not known"), "{said}");
    let app = at("Microsoft.App/containerApps");
    let said = wrong(
        &format!("/resources/{app}/properties/template/scale"),
        json!({"minReplicas": "1"}),
    );
    assert!(said.contains("minReplicas"), "{said}");
    let probe = format!("/resources/{app}/properties/template/containers/0/probes/0");
    for (member, value) in [
        ("failureThreshold", 40),
        ("failureThreshold", 0),
        ("periodSeconds", 241),
    ] {
        let said = wrong(&format!("{probe}/{member}"), json!(value));
        assert!(said.contains(member), "{said}");
    }
    let said = wrong(&format!("/resources/{app}/dependsOn"), json!([]));
    assert!(said.contains("does not depend on it"), "{said}");
    let said = deployed(&template, &json!({"ledger": "redis"})).unwrap_err();
    assert!(said.to_string().contains("ledger"), "{said}");
    Ok(())
}

/// What this deployment promises.
fn check(deployed: &Value, given: &Value) {
    let text = |name: &str| given[name].as_str().unwrap_or_default();
    let vaults = of_type(deployed, "Microsoft.KeyVault/vaults");
    let [vault] = vaults.as_slice() else {
        panic!("{deployed}")
    };
    let vault = &vault["properties"];
    assert_eq!(vault["enablePurgeProtection"], true);
    assert_eq!(vault["enableSoftDelete"], true);
    let is_on_roles = text("permissions") == "rbac";
    assert_eq!(vault["enableRbacAuthorization"], is_on_roles);
    let has_rotator = !text("rotatorIssuer").is_empty();
    let app = "«/subscriptions/S/resourceGroups/G/providers/Microsoft.ManagedIdentity/userAssignedIdentities/behalf-app».principalId";
    let rotator = app.replace("behalf-app", "behalf-rotate");
    let mut expected = BTreeSet::from([(app.to_owned(), "get")]);
    if has_rotator {
        expected.insert((rotator, "set"));
    }
    for (name, may) in [
        ("outsidePrincipalId", "get"),
        ("rotatorPrincipalId", "set"),
        (
            "retirerPrincipalId",
            if is_on_roles { "update" } else { "set" },
        ),
    ] {
        if !text(name).is_empty() {
            expected.insert((text(name).to_owned(), may));
        }
    }
    let roles = of_type(deployed, "Microsoft.Authorization/roleDefinitions");
    // Azure's own role Reader: of the vault, for whoever rotates keys with a principal of its own.
    let (readers, assignments): (Vec<_>, Vec<_>) =
        of_type(deployed, "Microsoft.Authorization/roleAssignments")
            .into_iter()
            .partition(|it| {
                let role = it["properties"]["roleDefinitionId"].as_str().unwrap();
                role.ends_with("/acdd72a7-3385-48ef-bd42-f606fba81ae7")
            });
    let readers: Vec<_> = readers
        .iter()
        .map(|it| (&it["scope"], &it["properties"]["principalId"]))
        .collect();
    let vault_itself = json!(format!(
        "Microsoft.KeyVault/vaults/{}",
        vaults[0]["name"].as_str().unwrap()
    ));
    let expected_readers = match text("rotatorPrincipalId") {
        "" => vec![],
        _ => vec![(&vault_itself, &given["rotatorPrincipalId"])],
    };
    assert_eq!(readers, expected_readers);
    let policies = vault["accessPolicies"].as_array().unwrap();
    let found: BTreeSet<_> = if is_on_roles {
        assert!(policies.is_empty());
        let may = |assignment: &Value| {
            let id = assignment["properties"]["roleDefinitionId"]
                .as_str()
                .unwrap();
            let mut all = roles.iter();
            let role = all
                .find(|it| id.ends_with(it["name"].as_str().unwrap()))
                .unwrap();
            let permissions = role["properties"]["permissions"].as_array().unwrap();
            assert_eq!(permissions.len(), 1);
            assert_eq!(permissions[0]["actions"], json!([]));
            match permissions[0]["dataActions"].to_string().as_str() {
                r#"["Microsoft.KeyVault/vaults/secrets/getSecret/action"]"# => "get",
                r#"["Microsoft.KeyVault/vaults/secrets/setSecret/action"]"# => "set",
                r#"["Microsoft.KeyVault/vaults/secrets/update/action"]"# => "update",
                other => panic!("{other}"),
            }
        };
        let who = |it: &Value| it["properties"]["principalId"].as_str().unwrap().to_owned();
        assignments.iter().map(|it| (who(it), may(it))).collect()
    } else {
        assert!(roles.is_empty() && assignments.is_empty());
        let may = |it: &Value| match it["permissions"].to_string().as_str() {
            r#"{"secrets":["get"]}"# => "get",
            r#"{"secrets":["set"]}"# => "set",
            other => panic!("{other}"),
        };
        let who = |it: &Value| it["objectId"].as_str().unwrap().to_owned();
        policies.iter().map(|it| (who(it), may(it))).collect()
    };
    assert_eq!(found, expected);

    let apps = of_type(deployed, "Microsoft.App/containerApps");
    assert_eq!(apps.len(), usize::from(!text("image").is_empty()));
    let Some(app) = apps.first() else { return };
    let inside = &app["properties"]["template"];
    let is_on_postgres = text("ledger") != "sqlite";
    let replicas = given["replicas"].as_u64().unwrap_or(2);
    let replicas = if is_on_postgres { replicas } else { 1 };
    assert_eq!(
        inside["scale"],
        json!({"minReplicas": replicas, "maxReplicas": replicas})
    );
    let container = &inside["containers"][0];
    let args = container["args"].to_string();
    assert!(args.contains("--platform-identity"));
    assert_eq!(args.contains("spin-postgres.toml"), is_on_postgres);
    let secrets: BTreeSet<_> = app["properties"]["configuration"]["secrets"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["name"].as_str().unwrap())
        .collect();
    let declared = variables(is_on_postgres);
    let tenant = json!({"name": "SPIN_VARIABLE_OPERATOR_TENANT", "value": "11111111-1111-4111-8111-111111111111"});
    let environment = container["env"].as_array().unwrap();
    assert!(environment.contains(&tenant), "{environment:?}");
    for set in environment {
        let name = set["name"].as_str().unwrap();
        let variable = name.strip_prefix("SPIN_VARIABLE_").unwrap().to_lowercase();
        let is_secret = *declared
            .get(&variable)
            .unwrap_or_else(|| panic!("{name} sets nothing"));
        assert_eq!(set["secretRef"].is_string(), is_secret, "{name}");
        if is_secret {
            assert!(secrets.contains(set["secretRef"].as_str().unwrap()));
        }
    }
}

/// The app's variables, and whether they are secret.
fn variables(is_on_postgres: bool) -> std::collections::BTreeMap<String, bool> {
    let mut text = fs::read_to_string(root().join("spin.toml")).unwrap();
    let end = text.find("[[trigger").unwrap();
    text.truncate(end);
    if is_on_postgres {
        text += &fs::read_to_string(root().join("src/http/postgres/variables.toml")).unwrap();
    }
    let all: toml::Table = toml::from_str(&text).unwrap();
    let all = all["variables"].as_table().unwrap().iter();
    let is_secret = |it: &toml::Value| it.get("secret").and_then(toml::Value::as_bool);
    all.map(|(name, it)| (name.clone(), is_secret(it).unwrap_or(false)))
        .collect()
}

#[test]
fn whoever_rotates_keys_is_an_output() -> Result {
    let template = template()?;
    let principal = |parameters: Value| {
        let deployed = deployed(&template, &parameters)?;
        anyhow::Ok(deployed["outputs"]["rotatorPrincipalId"].clone())
    };
    assert_eq!(principal(json!({}))?, "");
    assert_eq!(principal(json!({"rotatorPrincipalId": "R"}))?, "R");
    let made = principal(json!({"rotatorIssuer": "https://oidc.example", "rotatorSubject": "s"}))?;
    let made = made.as_str().unwrap();
    assert!(made.ends_with("behalf-rotate».principalId"), "{made}");
    Ok(())
}

#[test]
fn an_alert_is_about_who_was_denied() -> Result {
    let deployed = deployed(&template()?, &json!({}))?;
    let alerts = of_type(&deployed, "Microsoft.Insights/scheduledQueryRules");
    let query = alerts[0]["properties"]["criteria"]["allOf"][0]["query"]
        .as_str()
        .unwrap();
    // As Key Vault says it of a request without a token, and of a version that is disabled.
    for said in [
        "AKV10000: Request is missing a Bearer or PoP token.",
        "Operation get is not allowed on a disabled secret.",
    ] {
        let left_out = query
            .split(r#"ResultDescription !has ""#)
            .skip(1)
            .filter_map(|it| it.split('"').next());
        assert!(
            left_out.clone().any(|it| said.contains(it)),
            "{said}: {query}"
        );
    }
    Ok(())
}

#[test]
fn outputs_are_the_apps_variables() -> Result {
    let deployed = deployed(&template()?, &json!({}))?;
    let declared = variables(false);
    let outputs = deployed["outputs"].as_object().unwrap();
    let settings: Vec<_> = outputs.keys().filter(|it| it.contains('_')).collect();
    assert_eq!(settings.len(), 3);
    for name in settings {
        assert!(declared.contains_key(name), "{name}");
    }
    Ok(())
}

/// A folder with programs that go before all others.
struct Programs(tempfile::TempDir);

impl Programs {
    fn new(programs: &[(&str, String)]) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        fs::create_dir(folder.path().join("bin"))?;
        for (name, text) in programs {
            let file = folder.path().join("bin").join(name);
            fs::write(&file, text)?;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
        }
        Ok(Self(folder))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn run(&self, command: &mut Command) -> anyhow::Result<Output> {
        let path = std::env::var("PATH")?;
        let path = format!("{}:{path}", self.path().join("bin").display());
        Ok(command
            .current_dir(self.path())
            .env("PATH", path)
            .env("AZ_STATE", self.path().join("state"))
            .output()?)
    }
}

/// With `az` itself, and a small Microsoft Graph in place of the network.
fn with_az() -> anyhow::Result<Programs> {
    installed()?;
    let python = root().join("target/peers/python/bin/python");
    let program = root().join("runtime-tests/peers/azure_graph.py");
    let text = format!(
        "#!/bin/sh\nexec '{}' -B '{}' \"$@\"\n",
        python.display(),
        program.display()
    );
    Programs::new(&[("az", text)])
}

const EVERYTHING: [&str; 11] = [
    "--scope",
    "access_as_user",
    "--multitenant",
    "--managed-identity",
    "88888888-8888-4888-8888-888888888888",
    "--federated",
    "https://oidc.example/cluster",
    "system:serviceaccount:behalf:behalf",
    "--assign",
    "Behalf.Read",
    "77777777-7777-4777-8777-777777777777",
];

#[test]
fn a_registration_is_made_once() -> Result {
    let programs = with_az()?;
    let register =
        |words: &[&str]| programs.run(Command::new(folder().join("register-app")).args(words));
    let changes = || {
        let log = fs::read_to_string(programs.path().join("state/requests")).unwrap_or_default();
        let changing = ["POST ", "PATCH ", "PUT ", "DELETE "];
        let lines = log.lines();
        lines
            .filter(|line| changing.iter().any(|it| line.starts_with(it)))
            .count()
    };
    let mut dry = EVERYTHING.to_vec();
    dry.push("--dry-run");
    let output = register(&dry)?;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(changes(), 0);

    let first = register(&EVERYTHING)?;
    assert!(first.status.success(), "{first:?}");
    let made = changes();
    assert!(made > 5, "{made}");
    let again = register(&EVERYTHING)?;
    assert!(again.status.success(), "{again:?}");
    assert_eq!((changes(), &again.stdout), (made, &first.stdout));

    let graph = || -> anyhow::Result<Value> {
        let text = fs::read(programs.path().join("state/graph.json"))?;
        Ok(serde_json::from_slice(&text)?)
    };
    let state = graph()?;
    assert_eq!(state["applications"].as_array().map(Vec::len), Some(1));
    let app = &state["applications"][0];
    let id = app["appId"].as_str().unwrap();
    assert_eq!(String::from_utf8(first.stdout)?, format!("{id}\n"));
    assert_eq!(app["signInAudience"], "AzureADMultipleOrgs");
    assert_eq!(app["identifierUris"], json!([format!("api://{id}")]));
    assert_eq!(app["api"]["requestedAccessTokenVersion"], 2);
    let values = |list: &Value, member: &str| -> Vec<String> {
        let all = list.as_array().unwrap().iter();
        all.map(|it| it[member].as_str().unwrap().to_owned())
            .collect()
    };
    let [user_read, offline_access] = [
        "e1fe6dd8-ba31-4d61-89e7-88639da4683d",
        "7427e0e9-2fba-42fe-b0c0-848c9e6a8182",
    ];
    let permissions =
        |app: &Value, at: usize| values(&app["requiredResourceAccess"][at]["resourceAccess"], "id");
    assert_eq!(permissions(app, 0), [user_read, offline_access]);
    let roles = values(&app["appRoles"], "value");
    assert_eq!(
        roles,
        ["Behalf.Act", "Behalf.Admin", "Behalf.Read", "Behalf.Sweep"]
    );
    let scopes = values(&app["api"]["oauth2PermissionScopes"], "value");
    assert_eq!(scopes, ["access_as_user"]);
    assert_eq!(
        values(&app["optionalClaims"]["accessToken"], "name"),
        ["idtyp"]
    );
    let trusted = &state["federated"];
    assert_eq!(
        values(trusted, "subject"),
        [
            "88888888-8888-4888-8888-888888888888",
            "system:serviceaccount:behalf:behalf"
        ]
    );
    assert_eq!(state["assigned"].as_array().map(Vec::len), Some(1));

    // What is lacking is added, in one change, and what is there stays: nobody is shut out by an option that is left out.
    let more = ["--scope", "another"];
    assert!(register(&more)?.status.success());
    assert_eq!(changes(), made + 1);
    let state = graph()?;
    let app = &state["applications"][0];
    let scopes = values(&app["api"]["oauth2PermissionScopes"], "value");
    assert_eq!(scopes, ["access_as_user", "another"]);
    assert_eq!(app["signInAudience"], "AzureADMultipleOrgs");
    assert_eq!(values(&app["appRoles"], "value"), roles);

    // Of a registration that another tool has made, which asks for something of Microsoft Graph and of another API already.
    let [calendars, other] = [
        "465a38f9-76ea-45b9-9f34-9e8b0d4b0b42",
        "99999999-9999-4999-8999-999999999999",
    ];
    let access = |resource: &str, id: &str| json!({"resourceAppId": resource, "resourceAccess": [{"id": id, "type": "Scope"}]});
    let graph_itself = "00000003-0000-0000-c000-000000000000";
    for (made_before, expected) in [
        (calendars, vec![calendars, user_read, offline_access]),
        (user_read, vec![user_read, offline_access]),
    ] {
        let mut state = graph()?;
        state["applications"][0]["requiredResourceAccess"] =
            json!([access(graph_itself, made_before), access(other, other)]);
        fs::write(programs.path().join("state/graph.json"), state.to_string())?;
        let before = changes();
        for _ in 0..2 {
            let output = register(&[])?;
            assert!(output.status.success(), "{output:?}");
            assert_eq!(changes(), before + 1);
        }
        let state = graph()?;
        let app = &state["applications"][0];
        assert_eq!(permissions(app, 0), [other]);
        assert_eq!(permissions(app, 1), expected);
    }
    let made = changes();

    for words in [
        &["--assign", "Behalf.Nothing", "x"][..],
        &["--name", "it's"],
        &["--nmae", "x"],
        &["--name"],
    ] {
        let output = register(words)?;
        assert_eq!(output.status.code(), Some(2), "{output:?}");
    }
    assert_eq!(changes(), made);
    Ok(())
}

#[test]
fn the_azure_cli_takes_every_call() -> Result {
    let programs = with_az()?;
    let mut dry = EVERYTHING.to_vec();
    dry.push("--dry-run");
    let output = programs.run(Command::new(folder().join("register-app")).args(dry))?;
    let calls = programs.path().join("calls");
    fs::write(&calls, output.stdout)?;
    let wrong = programs.path().join("wrong.md");
    fs::write(
        &wrong,
        "```sh\nX=$(az group list --query x) || az group create --bogus 2>&1 | tail\n```\n",
    )?;
    let mut files = vec![calls.to_str().unwrap().to_owned()];
    for page in ["scripts/azure/README.md", "README.md", "OPERATIONS.md"] {
        let page = root().join(page);
        if page.exists() {
            files.push(page.to_str().unwrap().to_owned());
        }
    }
    let mut words = vec!["check"];
    words.extend(files.iter().map(String::as_str));
    let said = python("azure_cli.py", &words, "")?;
    let count = |line: &str| line.split(' ').next().unwrap().parse::<usize>().unwrap();
    let counts: Vec<_> = said.lines().map(count).collect();
    assert!(counts[0] >= 8 && counts[1] > 8, "{said}");
    let error = python("azure_cli.py", &["check", wrong.to_str().unwrap()], "");
    let error = error.unwrap_err().to_string();
    let refused = error.lines().filter(|it| it.contains("wrong.md:2: az "));
    let refused: Vec<_> = refused.collect();
    assert!(
        matches!(refused.as_slice(), [one] if one.contains("az group create --bogus")),
        "{error}"
    );
    Ok(())
}

#[test]
fn pipelines_are_as_their_schemas_have_them_and_run_what_they_have_checked() -> Result {
    installed()?;
    let zizmor = root().join("target/peers/python/bin/zizmor");
    let mut zizmor = Command::new(zizmor);
    zizmor.args(["--offline", "--no-progress", "--quiet"]);
    let output = zizmor
        .arg(folder().join("rotate-keys.github.yml"))
        .output()?;
    assert!(output.status.success(), "{output:?}");

    let programs = Programs::new(&[("curl", CURL.to_owned())])?;
    let rotate = "#!/bin/sh\necho \"$@\" >rotated\n";
    fs::create_dir_all(programs.path().join("release/scripts"))?;
    let script = programs.path().join("release/scripts/rotate-key");
    fs::write(&script, rotate)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    let mut pack = Command::new("tar");
    pack.args(["--create", "--gzip", "--file", "archive", "release"]);
    assert!(programs.run(&mut pack)?.status.success());
    let sum = programs.run(Command::new("sha256sum").arg("archive"))?;
    let sum = String::from_utf8(sum.stdout)?;
    let sum = sum.split(' ').next().unwrap();

    for (kind, name) in [
        ("github", "rotate-keys.github.yml"),
        ("azure", "rotate-keys.azure-pipelines.yml"),
    ] {
        let file = folder().join(name);
        let step = python("azure_pipelines.py", &[kind, file.to_str().unwrap()], "")?;
        let text = fs::read_to_string(&file)?;
        for (from, to) in [
            ("cron", "crno"),
            ("runs-on", "run-on"),
            ("scriptType", "type"),
        ] {
            if text.contains(from) {
                let wrong = programs.path().join(name);
                fs::write(&wrong, text.replace(from, to))?;
                let said = python("azure_pipelines.py", &[kind, wrong.to_str().unwrap()], "");
                assert!(said.is_err(), "{from}");
            }
        }
        let run = |digest: &str| {
            let mut shell = Command::new("bash");
            shell
                .args(["-c", &step])
                .env("ARCHIVE", "https://example/a");
            programs.run(shell.env("DIGEST", digest))
        };
        let rotated = programs.path().join("rotated");
        // Another archive than the one that was meant is not even unpacked.
        let output = run(&"0".repeat(64))?;
        assert!(!output.status.success(), "{output:?}");
        assert!(!rotated.exists());
        let output = run(sum)?;
        assert!(output.status.success(), "{output:?}");
        assert_eq!(fs::read_to_string(&rotated)?, "--older-than 25d\n");
        fs::remove_file(rotated)?;
    }
    Ok(())
}

/// Gives the archive for whatever it is asked for over HTTPS.
const CURL: &str = r#"#!/bin/sh
case "$*" in *"--proto =https"*) ;; *) exit 1 ;; esac
while [ $# -gt 0 ]; do
  [ "$1" != --output ] || cp archive "$2"
  shift
done
"#;
