//! Who and what: identifiers, parsed once. A value of one of these types is safe in a key name, a URL and a log line.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};

use crate::port::Random;
use crate::secret::PseudonymKey;

/// Tenant of Microsoft's personal accounts, which is no organisation (facts/entra-and-key-vault.md §B).
pub const PERSONAL_ACCOUNTS: &str = "9188040d-6c67-4c5b-b112-36a304b66dad";

/// A GUID in lower case, with dashes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Guid(Box<str>);

impl Guid {
    /// Reads `8-4-4-4-12` hexadecimal digits of either case.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let well_formed = text.len() == 36
            && text.bytes().enumerate().all(|(at, byte)| match at {
                8 | 13 | 18 | 23 => byte == b'-',
                _ => byte.is_ascii_hexdigit(),
            });
        well_formed.then(|| Self(text.to_ascii_lowercase().into()))
    }

    /// A random one (RFC 9562 version 4).
    #[must_use]
    pub fn random(random: &impl Random) -> Self {
        let mut bytes = [0; 16];
        random.fill(&mut bytes);
        let number =
            u128::from_be_bytes(bytes) & !(0xf << 76) & !(0xc << 60) | 0x4 << 76 | 0x8 << 60;
        let digits = format!("{number:032x}");
        let mut text = String::with_capacity(36);
        for (at, digit) in digits.chars().enumerate() {
            if matches!(at, 8 | 12 | 16 | 20) {
                text.push('-');
            }
            text.push(digit);
        }
        Self(text.into())
    }

    /// Reads 32 lower-case hexadecimal digits, as [`Self::digits`] writes them.
    #[must_use]
    pub fn from_digits(digits: &str) -> Option<Self> {
        let (first, rest) = digits.split_at_checked(8)?;
        let (second, rest) = rest.split_at_checked(4)?;
        let (third, rest) = rest.split_at_checked(4)?;
        let (fourth, fifth) = rest.split_at_checked(4)?;
        is_lower_hex(digits, 32)
            .then(|| Self(format!("{first}-{second}-{third}-{fourth}-{fifth}").into()))
    }

    /// With dashes, lower case.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The 32 hexadecimal digits alone: how a key name carries it.
    #[must_use]
    pub fn digits(&self) -> String {
        self.0.replace('-', "")
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A tenant: the claim `tid`.
pub type TenantId = Guid;

/// A user's identity to sealing: the user-id template over verified claims. Never stored in the clear.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UserId(Box<str>);

impl UserId {
    /// As it stands in a sealed token. It was made by [`UserTemplate::user_id`], and is compared, not trusted.
    #[must_use]
    pub fn from_sealed(text: &str) -> Self {
        Self(text.into())
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What storage knows the user by: base64url of HMAC-SHA-256 (plain SHA-256 without a key), cut to 32 characters,
    /// which is 192 bits (design §2).
    #[must_use]
    pub fn storage_id(&self, key: Option<&PseudonymKey>) -> StorageId {
        let digest: [u8; 32] =
            match key.map(|key| Hmac::<Sha256>::new_from_slice(key.expose().as_bytes())) {
                Some(Ok(mut mac)) => {
                    mac.update(self.0.as_bytes());
                    mac.finalize().into_bytes().into()
                }
                // HMAC takes a key of any length, so `Err` does not occur.
                Some(Err(_)) | None => Sha256::digest(self.0.as_bytes()).into(),
            };
        let mut text = URL_SAFE_NO_PAD.encode(digest);
        text.truncate(StorageId::LENGTH);
        StorageId(text.into())
    }
}

/// A user, as storage may know one: `vault.user` of the WIT.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct User {
    /// The tenant.
    pub tenant: TenantId,
    /// The storage id.
    pub id: StorageId,
}

/// What storage knows a user by: 32 characters of `[A-Za-z0-9_-]`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct StorageId(Box<str>);

impl StorageId {
    const LENGTH: usize = 32;

    /// Reads one back from a key name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        (text.len() == Self::LENGTH && text.bytes().all(is_base64url)).then(|| Self(text.into()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A name that an enrolment or a write gives itself: a fresh random text that never recurs
/// (facts/storage-protocol.md §2).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Nonce(Box<str>);

impl Nonce {
    /// Names an enrolment: ten digits of Unix time, which only the garbage collection of old enrolments reads, and 96
    /// random bits.
    #[must_use]
    pub fn for_enrolment(now: u64, random: &impl Random) -> Self {
        Self(format!("{now:010}{}", random_text::<12>(random)).into())
    }

    /// Names a write: 64 random bits.
    #[must_use]
    pub fn for_write(random: &impl Random) -> Self {
        Self(random_text::<8>(random).into())
    }

    /// When the enrolment that this names was made, by the clock of whoever made it. None if this names a write.
    #[must_use]
    pub fn enrolled_at(&self) -> Option<u64> {
        self.0.get(..10)?.parse().ok()
    }

    /// Reads one: 1 to 64 characters of `[A-Za-z0-9_-]`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        ((1..=64).contains(&text.len()) && text.bytes().all(is_base64url))
            .then(|| Self(text.into()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Name of a Key Vault secret: `^[0-9a-zA-Z-]{1,127}$` (facts/entra-and-key-vault.md §D.2).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct SecretName(Box<str>);

impl SecretName {
    /// Reads a name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        ((1..=127).contains(&text.len()) && text.bytes().all(allowed)).then(|| Self(text.into()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Version of a Key Vault secret: 32 lower-case hexadecimal digits (facts/entra-and-key-vault.md §D.2). Versions have
/// no order of time: which is newest only Key Vault can tell (§D.3).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct KeyVersion(Box<str>);

impl KeyVersion {
    /// Reads a version.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        is_lower_hex(text, 32).then(|| Self(text.into()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The claims that identify a user, all validated.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Subject {
    /// `tid`.
    pub tenant: TenantId,
    /// `oid`.
    pub object: Guid,
    /// `sub`, which is pairwise per app.
    pub sub: Box<str>,
}

/// Template of user ids over `{tid}`, `{oid}`, `{sub}` (the seed's `userId()`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UserTemplate(Vec<Part>);

impl UserTemplate {
    /// Reads a template. It must tell users apart: `{tid}` and one of `{oid}`, `{sub}` must occur.
    ///
    /// # Errors
    /// What is expected of it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let parts = Part::parse(text)?;
        let has = |part: &Part| parts.contains(part);
        if has(&Part::Tid) && (has(&Part::Oid) || has(&Part::Sub)) {
            Ok(Self(parts))
        } else {
            Err("must contain {tid}, and {oid} or {sub}")
        }
    }

    /// Fills it in.
    #[must_use]
    pub fn user_id(&self, subject: &Subject) -> UserId {
        let text: String = self
            .0
            .iter()
            .map(|part| match part {
                Part::Literal(text) => text,
                Part::Tid => subject.tenant.as_str(),
                Part::Oid => subject.object.as_str(),
                Part::Sub => &*subject.sub,
            })
            .collect();
        UserId(text.into())
    }
}

/// Template of secret names over `{tid}` (the seed's `secretId()`): one key per tenant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SecretTemplate(Vec<Part>);

impl SecretTemplate {
    /// Reads a template. `{tid}` must occur and nothing else may, because a sweep knows no more of a user than the
    /// tenant; what it yields must be a secret name.
    ///
    /// # Errors
    /// What is expected of it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        const EXPECTED: &str = "must contain {tid}, no other claim, and besides only letters, digits and '-', at most 127 with the tenant";
        let template = Self(Part::parse(text)?);
        let claims_fit = template.0.contains(&Part::Tid)
            && template
                .0
                .iter()
                .all(|part| matches!(part, Part::Tid | Part::Literal(_)));
        let sample = template.text("00000000-0000-0000-0000-000000000000");
        if claims_fit && SecretName::parse(&sample).is_some() {
            Ok(template)
        } else {
            Err(EXPECTED)
        }
    }

    /// Fills it in.
    #[must_use]
    pub fn secret_name(&self, tenant: &TenantId) -> SecretName {
        // Valid for one GUID, so valid for every GUID: `parse` tried one.
        SecretName(self.text(tenant.as_str()).into())
    }

    fn text(&self, tenant: &str) -> String {
        self.0
            .iter()
            .map(|part| match part {
                Part::Literal(text) => text.as_str(),
                Part::Tid | Part::Oid | Part::Sub => tenant,
            })
            .collect()
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Part {
    Literal(String),
    Tid,
    Oid,
    Sub,
}

impl Part {
    fn parse(text: &str) -> Result<Vec<Self>, &'static str> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((literal, after)) = rest.split_once('{') {
            let (claim, after) = after.split_once('}').ok_or("has a '{' without '}'")?;
            if !literal.is_empty() {
                parts.push(Self::Literal(literal.into()));
            }
            parts.push(match claim {
                "tid" => Self::Tid,
                "oid" => Self::Oid,
                "sub" => Self::Sub,
                _ => return Err("may use the claims {tid}, {oid} and {sub}"),
            });
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Self::Literal(rest.into()));
        }
        Ok(parts)
    }
}

fn random_text<const N: usize>(random: &impl Random) -> String {
    let mut bytes = [0; N];
    random.fill(&mut bytes);
    URL_SAFE_NO_PAD.encode(bytes)
}

fn is_base64url(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'
}

fn is_lower_hex(text: &str, length: usize) -> bool {
    text.len() == length
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENANT: &str = "11111111-2222-3333-4444-55555555abcd";

    fn subject() -> Subject {
        Subject {
            tenant: Guid::parse(TENANT).unwrap(),
            object: Guid::parse("AAAAAAAA-0000-0000-0000-000000000001").unwrap(),
            sub: "pairwise".into(),
        }
    }

    #[test]
    fn a_guid_is_folded_to_lower_case_and_survives_its_digits() {
        let guid = Guid::parse(&TENANT.to_uppercase()).unwrap();
        assert_eq!(guid.as_str(), TENANT);
        assert_eq!(Guid::from_digits(&guid.digits()), Some(guid));
    }

    #[test]
    fn a_random_guid_is_one_of_version_4() {
        struct All(u8);
        impl Random for All {
            fn fill(&self, buffer: &mut [u8]) {
                buffer.fill(self.0);
            }
        }
        for (byte, expected) in [
            (0x00, "00000000-0000-4000-8000-000000000000"),
            (0xff, "ffffffff-ffff-4fff-bfff-ffffffffffff"),
        ] {
            let guid = Guid::random(&All(byte));
            assert_eq!(guid.as_str(), expected);
            assert_eq!(Guid::parse(expected), Some(guid));
        }
    }

    #[test]
    fn what_is_no_guid_is_refused() {
        for text in [
            "",
            "common",
            &TENANT[1..],
            "11111111-2222-3333-4444-55555555abc/",
            "1111111122223333444455555555abcd",
        ] {
            assert_eq!(Guid::parse(text), None, "{text}");
        }
        for digits in [
            "",
            "1111111122223333444455555555ABCD",
            "é11111111222233334444555555555abc",
        ] {
            assert_eq!(Guid::from_digits(digits), None, "{digits}");
        }
    }

    #[test]
    fn user_templates_are_filled_in_from_claims() {
        let id = |template: &str| UserTemplate::parse(template).unwrap().user_id(&subject());
        assert_eq!(
            id("{tid}.{oid}").as_str(),
            "11111111-2222-3333-4444-55555555abcd.aaaaaaaa-0000-0000-0000-000000000001"
        );
        assert_eq!(
            id("u-{sub}@{tid}").as_str(),
            "u-pairwise@11111111-2222-3333-4444-55555555abcd"
        );
    }

    #[test]
    fn templates_that_do_not_tell_users_or_tenants_apart_are_refused() {
        for template in ["", "{oid}", "{tid}", "{tid}{upn}", "{tid}.{oid"] {
            assert!(UserTemplate::parse(template).is_err(), "{template}");
        }
        for template in [
            "",
            "obo",
            "obo-{oid}",
            "{tid}-{oid}",
            "obo_{tid}",
            &format!("{}{{tid}}", "a".repeat(92)),
        ] {
            assert!(SecretTemplate::parse(template).is_err(), "{template}");
        }
        assert_eq!(
            SecretTemplate::parse("obo-{tid}")
                .unwrap()
                .secret_name(&subject().tenant)
                .as_str(),
            "obo-11111111-2222-3333-4444-55555555abcd"
        );
    }

    #[test]
    fn a_storage_id_depends_on_user_and_key_and_fits_a_key_name() {
        let user = UserId::from_sealed("t.o");
        let plain = user.storage_id(None);
        let keyed = user.storage_id(Some(&PseudonymKey::new("k".into())));
        assert_ne!(plain, keyed);
        assert_ne!(plain, UserId::from_sealed("t.p").storage_id(None));
        // printf t.o | openssl dgst -sha256 -binary | base64 | tr +/ -_ | cut -c1-32
        assert_eq!(plain.as_str(), "tKUF1yRSlfj7bUfszSXMrhzLnF9X_Wft");
        // … openssl dgst -sha256 -hmac k …
        assert_eq!(keyed.as_str(), "Zk4ufXsLtWwxy7A4LK3zBVTxrAKBI3cV");
        assert_eq!(StorageId::parse(keyed.as_str()), Some(keyed));
    }
}
