//! From a request's path to a component: an exact route beats the longest wildcard, as in Spin (PLATFORMS.md,
//! "HTTP trigger").

use http::header::{HeaderMap, HeaderName, HeaderValue};
use std::net::SocketAddr;

/// What the app's routes lead to.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    /// The first that matches a path is the best.
    routes: Vec<Route>,
}

/// A route of the manifest.
#[derive(Debug)]
pub(crate) struct Route {
    /// As the manifest has it.
    pub(crate) pattern: String,
    /// The component that it leads to.
    pub(crate) component: String,
    segments: Vec<Segment>,
}

/// A part of a route, between slashes. The order is that of preference.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Segment {
    /// This very text.
    Exact(String),
    /// Any text, under a name: `:name`.
    Named(String),
    /// Whatever follows, if anything: `...`, always last.
    Rest,
}

impl Routes {
    /// Adds a route: exact segments, `:name` for any one, and `/...` at the end for whatever follows.
    ///
    /// # Errors
    ///
    /// It is no route, or there already; the text says which.
    pub(crate) fn add(&mut self, pattern: &str, component: &str) -> Result<(), String> {
        if !pattern.starts_with('/') {
            return Err(format!("the route {pattern:?} must start with a slash"));
        }
        let (start, has_rest) = match pattern.strip_suffix("/...") {
            Some(start) => (start, true),
            None => (pattern, false),
        };
        let segment = |text: &str| match text.strip_prefix(':') {
            _ if text == "..." || text.contains('*') => Err(format!(
                "the route {pattern:?} may have a wildcard only at its end, as /..."
            )),
            Some("") => Err(format!("the route {pattern:?} has a colon without a name")),
            Some(name) => Ok(Segment::Named(name.to_owned())),
            None => Ok(Segment::Exact(text.to_owned())),
        };
        let mut segments = split(start).map(segment).collect::<Result<Vec<_>, _>>()?;
        if has_rest {
            segments.push(Segment::Rest);
        }
        match self
            .routes
            .binary_search_by(|route| route.segments.cmp(&segments))
        {
            Ok(_) => Err(format!("the route {pattern} is there twice")),
            Err(place) => {
                let route = Route {
                    pattern: pattern.to_owned(),
                    component: component.to_owned(),
                    segments,
                };
                self.routes.insert(place, route);
                Ok(())
            }
        }
    }

    /// Drops the routes for which `keep` is false.
    pub(crate) fn retain(&mut self, keep: impl FnMut(&Route) -> bool) {
        self.routes.retain(keep);
    }

    /// All routes, those that match first in front.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Route> {
        self.routes.iter()
    }

    /// The route that a path takes.
    pub(crate) fn find<'a>(&'a self, path: &'a str) -> Option<RouteMatch<'a>> {
        self.routes.iter().find_map(|route| route.matches(path))
    }
}

/// The segments of a path. Slashes at its ends do not count.
fn split(path: &str) -> impl Iterator<Item = &str> {
    let path = path.trim_matches('/');
    (!path.is_empty())
        .then(|| path.split('/'))
        .into_iter()
        .flatten()
}

impl Route {
    fn matches<'a>(&'a self, path: &'a str) -> Option<RouteMatch<'a>> {
        let mut texts = split(path);
        let mut named = Vec::new();
        let mut path_info = String::new();
        for segment in &self.segments {
            match segment {
                Segment::Exact(text) => (texts.next()? == text).then_some(())?,
                Segment::Named(name) => named.push((name.as_str(), texts.next()?)),
                Segment::Rest => {
                    for text in texts.by_ref() {
                        path_info.extend(["/", text]);
                    }
                    if path.ends_with('/') {
                        path_info.push('/');
                    }
                }
            }
        }
        texts.next().is_none().then_some(RouteMatch {
            route: self,
            named,
            path_info,
        })
    }
}

/// A route, and what of a path its wildcards stand for.
#[derive(Debug)]
pub(crate) struct RouteMatch<'a> {
    /// The route.
    pub(crate) route: &'a Route,
    named: Vec<(&'a str, &'a str)>,
    /// What `...` stands for, with the slashes around it.
    path_info: String,
}

impl RouteMatch<'_> {
    /// Tells the component about its request as Spin does, in headers. `full_url` is the request's, absolute.
    ///
    /// Such headers that the client sent are dropped; Spin leaves them in front of its own.
    pub(crate) fn add_headers(&self, headers: &mut HeaderMap, full_url: &str, client: SocketAddr) {
        let forged: Vec<_> = headers
            .keys()
            .filter(|name| name.as_str().starts_with("spin-"))
            .cloned()
            .collect();
        for name in forged {
            headers.remove(name);
        }
        let pattern = self.route.pattern.as_str();
        let mut add = |name: &str, value: &str| {
            // What is no header value, such as a path with bytes outside ASCII, is left out.
            if let (Ok(name), Ok(value)) =
                (name.parse::<HeaderName>(), HeaderValue::from_str(value))
            {
                headers.append(name, value);
            }
        };
        add("spin-path-info", &self.path_info);
        add("spin-full-url", full_url);
        add("spin-matched-route", pattern);
        add("spin-base-path", "/");
        add("spin-raw-component-route", pattern);
        add(
            "spin-component-route",
            pattern.strip_suffix("/...").unwrap_or(pattern),
        );
        add("spin-client-addr", &client.to_string());
        for (name, value) in &self.named {
            add(
                &format!(
                    "spin-path-match-{}",
                    name.replace('_', "-").to_ascii_lowercase()
                ),
                value,
            );
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn routes(patterns: &[&str]) -> Routes {
        let mut routes = Routes::default();
        for pattern in patterns {
            routes.add(pattern, "c").unwrap();
        }
        routes
    }

    #[test]
    fn exact_beats_the_longest_wildcard() {
        let routes = routes(&["/...", "/a/...", "/a/b/...", "/a/b", "/u/:id", "/u/me"]);
        for (path, pattern) in [
            ("/", "/..."),
            ("/x/y", "/..."),
            ("/a", "/a/..."),
            ("/a/", "/a/..."),
            ("/ab", "/..."),
            ("/a/x", "/a/..."),
            ("/a/b", "/a/b"),
            ("/a/b/", "/a/b"),
            ("//a/b", "/a/b"),
            ("/a/b/c", "/a/b/..."),
            ("/a//b", "/a/..."),
            ("/u/me", "/u/me"),
            ("/u/you", "/u/:id"),
        ] {
            assert_eq!(routes.find(path).unwrap().route.pattern, pattern, "{path}");
        }
    }

    #[test]
    fn no_route() {
        let routes = routes(&["/a", "/b/..."]);
        for path in ["/", "/c", "/a/b", "/ab"] {
            assert!(routes.find(path).is_none(), "{path}");
        }
    }

    #[test]
    fn headers() {
        let routes = routes(&["/foo/:user_id/...", "/exact", "/..."]);
        let headers = |path: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("spin-client-addr", HeaderValue::from_static("6.6.6.6:6"));
            headers.insert("x-kept", HeaderValue::from_static("1"));
            let client = "127.0.0.1:8777".parse().unwrap();
            routes.find(path).unwrap().add_headers(
                &mut headers,
                &format!("http://h.test{path}"),
                client,
            );
            headers
        };
        let all = headers("/foo/42/bar");
        for (name, value) in [
            ("spin-path-info", "/bar"),
            ("spin-full-url", "http://h.test/foo/42/bar"),
            ("spin-matched-route", "/foo/:user_id/..."),
            ("spin-base-path", "/"),
            ("spin-raw-component-route", "/foo/:user_id/..."),
            ("spin-component-route", "/foo/:user_id"),
            ("spin-client-addr", "127.0.0.1:8777"),
            ("spin-path-match-user-id", "42"),
            ("x-kept", "1"),
        ] {
            assert_eq!(
                all.get_all(name).iter().collect::<Vec<_>>(),
                [value],
                "{name}"
            );
        }
        for (path, info) in [
            ("/exact", ""),
            ("/", "/"),
            ("/a", "/a"),
            ("/a/", "/a/"),
            ("/a/b", "/a/b"),
        ] {
            assert_eq!(headers(path).get("spin-path-info").unwrap(), info, "{path}");
        }
    }

    #[test]
    fn what_is_no_route() {
        let mut routes = routes(&["/a"]);
        assert_eq!(
            routes.add("a", "c").unwrap_err(),
            "the route \"a\" must start with a slash"
        );
        assert_eq!(
            routes.add("/a", "d").unwrap_err(),
            "the route /a is there twice"
        );
        assert_eq!(
            routes.add("/a/", "d").unwrap_err(),
            "the route /a/ is there twice"
        );
        assert_eq!(
            routes.add("/b/:", "d").unwrap_err(),
            "the route \"/b/:\" has a colon without a name"
        );
        for pattern in ["/.../a", "/a/*/b", "/*", "/*/..."] {
            let error = routes.add(pattern, "d").unwrap_err();
            assert!(
                error.ends_with("may have a wildcard only at its end, as /..."),
                "{pattern}: {error}"
            );
        }
    }
}
