//! Calls of APIs on a user's behalf: which there are, what may be called of them, and what crosses either way. The access token
//! is put in here, and goes to that API alone.

pub mod apis;
pub mod headers;
pub mod path;
pub mod pattern;

#[cfg(test)]
mod tests {
    use http::Method;

    use crate::error::call::CallDefect;
    use crate::vault::call::path::{Path, query};
    use crate::vault::call::pattern::{Pattern, allowed};

    /// Each under a pattern that allows everything.
    #[test]
    fn every_attack_of_the_table_is_refused_for_its_defect() {
        let mut met = Vec::new();
        for line in include_str!("call/attacks.tsv").lines() {
            if line.starts_with('#') {
                continue;
            }
            let [defect, method, target] = line.split('\t').collect::<Vec<_>>()[..] else {
                panic!("{line}")
            };
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let (path, rest) = target
                .split_once('?')
                .map_or((target, None), |(path, rest)| (path, Some(rest)));
            let checked = allowed(&method)
                .and_then(|()| Path::parse(path))
                .and_then(|path| rest.map(query).transpose().map(|_| path));
            let found = checked.expect_err(line).name();
            assert_eq!(found, defect, "{line}");
            met.push(found);
        }
        let of_a_path = |defect: &&CallDefect| {
            !matches!(
                defect,
                CallDefect::Upgrade
                    | CallDefect::TooLong
                    | CallDefect::Query
                    | CallDefect::NotAllowed
            )
        };
        for defect in CallDefect::ALL.iter().filter(of_a_path) {
            assert!(met.contains(&defect.name()), "no attack is {defect:?}");
        }
    }

    #[test]
    fn what_is_always_refused_cannot_be_allowed() {
        for text in ["GET /**", "GET /v1.0/me/**"] {
            let pattern = Pattern::parse(text).unwrap();
            assert_eq!(pattern.as_str(), text);
        }
        for text in [
            "TRACE /**",
            "CONNECT /**",
            "POST /v1.0/$batch",
            "GET /a/../b",
        ] {
            assert!(Pattern::parse(text).is_err(), "{text}");
        }
    }
}
