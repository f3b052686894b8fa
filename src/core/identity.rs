//! Who and what: identifiers, parsed once. A value of one of these types is safe in a key name, a URL and a log line.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};

use crate::port::Random;
use crate::secret::PseudonymKey;

/// Tenant of Microsoft's personal accounts, which is no organisation
/// (<https://learn.microsoft.com/entra/identity-platform/access-token-claims-reference>, `tid`).
pub const PERSONAL_ACCOUNTS: &str = "9188040d-6c67-4c5b-b112-36a304b66dad";

/// A GUID in lower case, with dashes.
///
/// ```
/// use behalf_core::identity::Guid;
///
/// let guid = Guid::parse("AAAAAAAA-2222-2222-2222-222222222222").unwrap();
/// assert_eq!(guid.as_str(), "aaaaaaaa-2222-2222-2222-222222222222");
/// assert_eq!(Guid::from_digits(&guid.digits()), Some(guid));
/// ```
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
    /// which is 192 bits (DESIGN.md, "Why is the tenant id in key names").
    #[must_use]
    pub fn storage_id(&self, key: Option<&PseudonymKey>) -> StorageId {
        let digest = match key {
            Some(key) => hmac(key, &self.0),
            None => Sha256::digest(self.0.as_bytes()).into(),
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
/// (PROTOCOL.md, "Keys").
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

    /// Names what cannot tell its own name, by its content.
    pub(crate) fn of_content(content: &[u8]) -> Self {
        let mut text = URL_SAFE_NO_PAD.encode(Sha256::digest(content));
        text.truncate(11);
        Self(text.into())
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

/// Name of a Key Vault secret: `^[0-9a-zA-Z-]{1,127}$`
/// (<https://learn.microsoft.com/azure/key-vault/general/about-keys-secrets-certificates>).
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

/// Version of a Key Vault secret: 32 lower-case hexadecimal digits (the same page). Versions have no order of time, and
/// are listed by their digits: which is newest Key Vault alone can tell, when it is asked for the secret without a
/// version.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct KeyVersion(Box<str>);

impl KeyVersion {
    /// Stands for one that nobody knows.
    pub(crate) fn unknown() -> Self {
        Self("0".repeat(32).into())
    }

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

/// A user as an app names one: `vault.user-name` of the WIT.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UserName {
    /// The tenant.
    pub tenant: TenantId,
    /// The object id there.
    pub object: Guid,
}

/// Template of user ids over `{tid}`, `{oid}`, `{sub}`.
///
/// ```
/// use behalf_core::identity::{Guid, Subject, UserTemplate};
///
/// let template = UserTemplate::parse("{tid}.{oid}").unwrap();
/// let user_id = template.user_id(&Subject {
///     tenant: Guid::parse("11111111-1111-1111-1111-111111111111").unwrap(),
///     object: Guid::parse("44444444-4444-4444-4444-444444444444").unwrap(),
///     sub: "pairwise-opaque".into(),
/// });
/// assert_eq!(
///     user_id.as_str(),
///     "11111111-1111-1111-1111-111111111111.44444444-4444-4444-4444-444444444444"
/// );
/// // Storage knows the user by a pseudonym of that.
/// assert_eq!(user_id.storage_id(None).as_str().len(), 32);
/// // Two users of a tenant must not be one.
/// assert!(UserTemplate::parse("{tid}").is_err());
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UserTemplate(Vec<TemplatePart>);

impl UserTemplate {
    /// Reads a template. It must tell users apart: `{tid}` and one of `{oid}`, `{sub}` must occur.
    ///
    /// # Errors
    /// What is expected of it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let parts = TemplatePart::parse(text)?;
        let has = |part: &TemplatePart| parts.contains(part);
        if has(&TemplatePart::Tid) && (has(&TemplatePart::Oid) || has(&TemplatePart::Sub)) {
            Ok(Self(parts))
        } else {
            Err("must contain {tid}, and {oid} or {sub}")
        }
    }

    /// Fills it in.
    #[must_use]
    pub fn user_id(&self, subject: &Subject) -> UserId {
        self.fill(&subject.tenant, &subject.object, &subject.sub)
    }

    /// Fills it in for a user of whom no token is at hand. None if it has `{sub}`, which only a token tells.
    #[must_use]
    pub fn user_id_of(&self, user: &UserName) -> Option<UserId> {
        (!self.has_sub()).then(|| self.fill(&user.tenant, &user.object, ""))
    }

    /// Whether it has `{sub}`.
    #[must_use]
    pub fn has_sub(&self) -> bool {
        self.0.contains(&TemplatePart::Sub)
    }

    fn fill(&self, tenant: &TenantId, object: &Guid, sub: &str) -> UserId {
        let text: String = self
            .0
            .iter()
            .map(|part| match part {
                TemplatePart::Literal(text) => text,
                TemplatePart::Tid => tenant.as_str(),
                TemplatePart::Oid => object.as_str(),
                TemplatePart::Sub => sub,
            })
            .collect();
        UserId(text.into())
    }
}

/// Template of secret names over `{tid}`: one key per tenant.
///
/// ```
/// use behalf_core::identity::{Guid, SecretTemplate};
///
/// let template = SecretTemplate::parse("obo-{tid}").unwrap();
/// let tenant = Guid::parse("11111111-1111-1111-1111-111111111111").unwrap();
/// assert_eq!(template.secret_name(&tenant).as_str(), "obo-11111111-1111-1111-1111-111111111111");
/// assert!(SecretTemplate::parse("one-key-for-all").is_err());
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SecretTemplate(Vec<TemplatePart>);

impl SecretTemplate {
    /// Reads a template. `{tid}` must occur and nothing else may, because a sweep knows no more of a user than the
    /// tenant; what it yields must be a secret name.
    ///
    /// # Errors
    /// What is expected of it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        const EXPECTED: &str = "must contain {tid}, no other claim, and besides only letters, digits and '-', at most 127 with the tenant";
        let template = Self(TemplatePart::parse(text)?);
        let claims_fit = template.0.contains(&TemplatePart::Tid)
            && template
                .0
                .iter()
                .all(|part| matches!(part, TemplatePart::Tid | TemplatePart::Literal(_)));
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
                TemplatePart::Literal(text) => text.as_str(),
                TemplatePart::Tid | TemplatePart::Oid | TemplatePart::Sub => tenant,
            })
            .collect()
    }
}

/// A template is made of these.
#[derive(Clone, PartialEq, Eq, Debug)]
enum TemplatePart {
    Literal(String),
    Tid,
    Oid,
    Sub,
}

impl TemplatePart {
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

    /// As it stands in the setting.
    fn as_str(&self) -> &str {
        match self {
            Self::Literal(text) => text,
            Self::Tid => "{tid}",
            Self::Oid => "{oid}",
            Self::Sub => "{sub}",
        }
    }
}

/// A short hash of each setting that what is stored depends on. Under another `client_id` no sealed token opens; under
/// another `user_id_template` or `pseudonym_key` nobody is known any more; under another `secret_id_template` no key is
/// found. Whoever keeps records compares it with that of those who wrote them, and so learns of such a change before a
/// thousand records are "not readable".
///
/// Each hash is the first 64 bits of SHA-256 over a label of its own and the setting as it is used, not as it is spelt;
/// of `pseudonym_key` it is HMAC-SHA-256 (RFC 2104) with that key over the label. SECURITY.md says what that gives
/// away.
///
/// ```
/// use behalf_core::identity::{Fingerprint, Guid, SecretTemplate, UserTemplate};
///
/// let user_id = UserTemplate::parse("{tid}.{oid}").unwrap();
/// let secret_id = SecretTemplate::parse("obo-{tid}").unwrap();
/// let of = |client_id: &str| {
///     Fingerprint::new(&Guid::parse(client_id).unwrap(), &user_id, &secret_id, None)
/// };
/// let written_by = of("aaaaaaaa-2222-2222-2222-222222222222");
/// assert_eq!(of("AAAAAAAA-2222-2222-2222-222222222222"), written_by);
///
/// let now = of("bbbbbbbb-2222-2222-2222-222222222222");
/// let pairs = written_by.parts().into_iter().zip(now.parts());
/// let changed: Vec<_> = pairs.filter(|(old, new)| old != new).map(|(_, (setting, _))| setting).collect();
/// assert_eq!(changed, ["client_id"]);
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fingerprint([Box<str>; 4]);

impl Fingerprint {
    /// The settings, in the order of their hashes.
    pub const SETTINGS: [&str; 4] = [
        "client_id",
        "user_id_template",
        "secret_id_template",
        "pseudonym_key",
    ];

    /// Computes it.
    #[must_use]
    pub fn new(
        client_id: &Guid,
        user_id: &UserTemplate,
        secret_id: &SecretTemplate,
        pseudonym_key: Option<&PseudonymKey>,
    ) -> Self {
        let text = |parts: &[TemplatePart]| parts.iter().map(TemplatePart::as_str).collect();
        let [of_client_id, of_user_id, of_secret_id, of_pseudonym_key] =
            Self::SETTINGS.map(|setting| format!("behalf fingerprint 1: {setting}\n"));
        let hash = |label: String, value: String| Sha256::digest(label + &value).into();
        let keyed = match pseudonym_key {
            // Unlike a user id, the label has no GUID in it, so this is no user's storage id.
            Some(key) => hmac(key, &of_pseudonym_key),
            None => hash(of_pseudonym_key, "none".into()),
        };
        let digests: [[u8; 32]; 4] = [
            hash(of_client_id, client_id.as_str().into()),
            hash(of_user_id, text(&user_id.0)),
            hash(of_secret_id, text(&secret_id.0)),
            keyed,
        ];
        Self(digests.map(|[a, b, c, d, e, f, g, h, ..]| {
            let number = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
            format!("{number:016x}").into()
        }))
    }

    /// Reads one back: 16 lower-case hexadecimal digits each, in the order of [`Self::SETTINGS`].
    #[must_use]
    pub fn parse(hashes: [&str; 4]) -> Option<Self> {
        let well_formed = hashes.iter().all(|hash| is_lower_hex(hash, 16));
        well_formed.then(|| Self(hashes.map(Into::into)))
    }

    /// Each setting's name, and its hash.
    #[must_use]
    pub fn parts(&self) -> [(&'static str, &str); 4] {
        let Self([client_id, user_id, secret_id, pseudonym_key]) = self;
        let [a, b, c, d] = Self::SETTINGS;
        [
            (a, client_id),
            (b, user_id),
            (c, secret_id),
            (d, pseudonym_key),
        ]
    }
}

fn hmac(key: &PseudonymKey, text: &str) -> [u8; 32] {
    match Hmac::<Sha256>::new_from_slice(key.expose().as_bytes()) {
        Ok(mut mac) => {
            mac.update(text.as_bytes());
            mac.finalize().into_bytes().into()
        }
        // HMAC takes a key of any length, so this does not occur.
        Err(_) => Sha256::digest(text).into(),
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

    fn fingerprint(client_id: &str, user: &str, secret: &str, key: Option<&str>) -> Fingerprint {
        Fingerprint::new(
            &Guid::parse(client_id).unwrap(),
            &UserTemplate::parse(user).unwrap(),
            &SecretTemplate::parse(secret).unwrap(),
            key.map(|key| PseudonymKey::new(key.into())).as_ref(),
        )
    }

    #[test]
    fn a_fingerprint_changes_in_the_setting_that_changed_alone() {
        let (user, secret) = ("{tid}.{oid}", "obo-{tid}");
        let first = fingerprint(TENANT, user, secret, Some("k"));
        assert_eq!(
            fingerprint(&TENANT.to_uppercase(), user, secret, Some("k")),
            first
        );
        let changed = |other: &Fingerprint| {
            let pairs = first.parts().into_iter().zip(other.parts());
            let differ = pairs.filter(|(was, is)| was != is);
            differ.map(|(_, (name, _))| name).collect::<Vec<_>>()
        };
        let other = TENANT.replace('1', "2");
        for (fingerprint, setting) in [
            (fingerprint(&other, user, secret, Some("k")), "client_id"),
            (
                fingerprint(TENANT, "{tid}.{sub}", secret, Some("k")),
                "user_id_template",
            ),
            (
                fingerprint(TENANT, user, "OBO-{tid}", Some("k")),
                "secret_id_template",
            ),
            (
                fingerprint(TENANT, user, secret, Some("K")),
                "pseudonym_key",
            ),
            (fingerprint(TENANT, user, secret, None), "pseudonym_key"),
        ] {
            assert_eq!(changed(&fingerprint), [setting]);
        }
        // The same value in two settings has two hashes.
        let same = fingerprint(TENANT, "{tid}{oid}", "a{tid}", None);
        let [_, (_, user), ..] = same.parts();
        let same = fingerprint(TENANT, "a{tid}{oid}", "{tid}", None);
        assert!(same.parts().iter().all(|(_, hash)| *hash != user));
    }

    /// It is stored, so a release that computes another one would stop every app.
    #[test]
    fn a_fingerprint_is_the_same_in_every_release_and_is_read_back() {
        let keyed = fingerprint(TENANT, "{tid}.{oid}", "obo-{tid}", Some("k"));
        let [client_id, user_id, secret_id, with_key] = keyed.parts().map(|(_, hash)| hash);
        let plain = fingerprint(TENANT, "{tid}.{oid}", "obo-{tid}", None);
        let [.., (_, without_key)] = plain.parts();
        for (hash, expected) in [
            // printf 'behalf fingerprint 1: client_id\n11111111-…' | openssl dgst -sha256 | cut -c1-16
            (client_id, "957c31755422a87b"),
            (user_id, "26639d0438e732b7"),
            (secret_id, "20b6d2270ef9398d"),
            // printf 'behalf fingerprint 1: pseudonym_key\n' | openssl dgst -sha256 -hmac k …
            (with_key, "abd13446337d29f6"),
            // … pseudonym_key\nnone …
            (without_key, "2e0cff6ae07efab9"),
        ] {
            assert_eq!(hash, expected);
        }
        let texts = keyed.parts().map(|(_, hash)| hash);
        assert_eq!(Fingerprint::parse(texts), Some(keyed.clone()));
        let [_, rest @ ..] = texts;
        let [b, c, d] = rest;
        for wrong in [
            "",
            "0123456789ABCDEF",
            "0123456789abcde",
            "0123456789abcdefg",
        ] {
            assert_eq!(Fingerprint::parse([wrong, b, c, d]), None, "{wrong}");
        }
    }
}
