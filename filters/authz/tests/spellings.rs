//! For every policy and request: no other spelling of the request that an upstream would treat alike gets another
//! verdict. It may be rejected before the filter sees it.

use authz::Authz;
use serde_json::{Value, json};
use tollgate_abi::spelling::{self, PathRules};
use tollgate_sdk::testing::TestHost;

/// A seeded random generator (xorshift), so that a failure is reproducible.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    fn chance(&mut self) -> bool {
        self.below(3) == 0
    }
}

const SEGMENTS: [&str; 8] = ["admin", "a", "b@c", "d;e", "é{", "x+y", "~u", "public"];
const HOSTS: [&str; 6] =
    ["example.com", "example.com:80", "example.com:8443", "other.org", "[2001:db8::1]:443", "a.example.com"];
const HOST_PATTERNS: [&str; 8] = [
    "Example.com",
    "*.example.com",
    "example.com:8443",
    "[2001:db8::1]",
    "example.com:80",
    "*:80",
    "example.com:*",
    "*:443",
];
const METHODS: [&str; 3] = ["GET", "DELETE", "PURGE"];
const COOKIES: [&str; 3] = ["role=admin", "role=user", "id=1"];

/// A path as intended, before any encoding.
fn meant(random: &mut Random) -> String {
    (0..=random.below(3)).map(|_| format!("/{}", random.one_of(&SEGMENTS))).collect()
}

fn normal(path: &str) -> Option<String> {
    let normal = spelling::path(path.as_bytes(), &PathRules::default()).ok()?;
    Some(String::from_utf8(normal.into_owned()).unwrap())
}

/// The same path in another spelling.
fn respelled(path: &str, random: &mut Random) -> String {
    let mut out = String::new();
    for byte in path.bytes() {
        match byte {
            b'/' => out += random.one_of(&["/", "/", "//", "/./", "/none/../", "/%2e/", "/n/%2E./"]),
            _ if random.chance() || byte >= 0x80 => {
                let upper = random.chance();
                out += &if upper { format!("%{byte:02X}") } else { format!("%{byte:02x}") };
            }
            _ => out.push(byte.into()),
        }
    }
    out
}

fn respelled_host(host: &str, random: &mut Random) -> String {
    let (name, port) =
        host.rsplit_once(':').filter(|(name, _)| !name.starts_with('[') || name.ends_with(']')).unwrap_or((host, ""));
    let mut name: String = name.chars().map(|c| if random.chance() { c.to_ascii_uppercase() } else { c }).collect();
    if name.starts_with('[') {
        name = random.one_of(&["[2001:db8::1]", "[2001:DB8:0::1]", "[2001:0db8:0:0:0:0:0:1]"]).into();
    } else if random.chance() {
        name.push('.');
    }
    match port {
        // The default port of the scheme may be omitted.
        "" | "80" => format!("{name}{}", random.one_of(&["", ":", ":80", ":080"])),
        port => format!("{name}:{}{port}", random.one_of(&["", "0"])),
    }
}

/// A pattern in the normal form that configurations must use.
fn pattern(random: &mut Random) -> String {
    let path = spelling::compared(normal(&meant(random)).unwrap().as_bytes()).into_owned();
    let path = String::from_utf8(path).unwrap();
    match random.below(4) {
        0 => path,
        1 => format!("{path}*"),
        2 => format!("*{}", &path[path.rfind('/').unwrap()..]),
        _ => "/admin*".into(),
    }
}

fn policy(random: &mut Random) -> Value {
    let mut operation = json!({});
    let list = |random: &mut Random, name: &str| if random.chance() { format!("not_{name}") } else { name.to_owned() };
    if random.below(4) > 0 {
        operation[list(random, "paths")] = json!([pattern(random), pattern(random)]);
    }
    if random.chance() {
        operation[list(random, "hosts")] = json!([random.one_of(&HOST_PATTERNS)]);
    }
    if random.chance() || operation == json!({}) {
        operation[list(random, "methods")] = json!([random.one_of(&METHODS)]);
    }
    let mut rule = json!({"to": [{"operation": operation}]});
    if random.chance() {
        rule["when"] = json!([{"key": "request.headers[cookie]", "values": [random.one_of(&COOKIES)]}]);
    }
    json!({"name": "p", "action": random.one_of(&["allow", "deny"]), "rules": [rule]})
}

#[test]
fn no_other_spelling_gets_another_verdict() {
    let mut random = Random(0x5eed);
    let mut respellings = 0;
    for _ in 0..1500 {
        let policy = policy(&mut random);
        let filter = TestHost::<Authz>::new(json!({"policies": [policy]})).unwrap_or_else(|e| panic!("{policy}: {e}"));
        for _ in 0..6 {
            let (path, host, method) = (meant(&mut random), random.one_of(&HOSTS), random.one_of(&METHODS));
            let cookie = random.one_of(&COOKIES);
            let verdict = |path: &str, host: &str, method: &str| {
                // The normalization that the proxy applies before any filter sees a request.
                let path = normal(path)?;
                let host = spelling::host(host.as_bytes())?;
                let host = str::from_utf8(&host).unwrap();
                let known = spelling::is_method(method.as_bytes());
                known.then(|| filter.request(method, &path).host(host).header("cookie", cookie).send().continued())
            };
            let plain = verdict(&path, host, method).expect("a valid request");
            for _ in 0..6 {
                let other = respelled(&path, &mut random);
                let other_host = respelled_host(host, &mut random);
                let other_method = if random.below(9) == 0 { method.to_ascii_lowercase() } else { method.into() };
                if let Some(verdict) = verdict(&other, &other_host, &other_method) {
                    respellings += 1;
                    assert_eq!(verdict, plain, "{policy}: {path} as {other}, {host} as {other_host}");
                }
            }
        }
    }
    assert!(respellings > 40_000, "only {respellings} were not rejected");
}

/// Another cookie, before or after, in a separate field or the same one, hides none from a `deny` policy and adds none
/// for an `allow` policy.
#[test]
fn another_cookie_does_not_bypass_a_policy() {
    for (action, values, cookie) in [("deny", "values", "role=admin"), ("allow", "not_values", "role=admin")] {
        let mut condition = json!({"key": "request.headers[cookie]"});
        condition[values] = json!([cookie]);
        let policy = json!({"name": "p", "action": action, "rules": [{"when": [condition]}]});
        let filter = TestHost::<Authz>::new(json!({"policies": [policy]})).unwrap();
        for fields in
            [&[cookie][..], &["a=1", cookie], &[cookie, "a=1"], &["a=1; role=admin"], &["role=admin;a=1", "b=2"]]
        {
            let request = filter.request("GET", "/");
            let request = fields.iter().fold(request, |request, field| request.header("cookie", field));
            assert!(!request.send().continued(), "{action} {fields:?}");
        }
    }
}

/// Servers tolerate more than the grammar of cookies, and treat all of these alike.
#[test]
fn no_other_spelling_of_a_cookie_bypasses_a_policy() {
    let spellings = [
        "role=admin",
        "role = admin",
        "role=\tadmin",
        "role\t=admin",
        "role=\"admin\"",
        "role = \"admin\"",
        "a=1,role=\"admin\"",
        "a=1; role= admin ,b",
        r#"role="\141dmin""#,
        "role=%61dmin",
        "role=\"%61%64min\"",
        "a=1, role = adm%69%6E",
    ];
    for pattern in ["role=admin", "role=\"admin\"", "role=adm*", "*=admin", "role=%61dmin", "role=%61*", "*%6din"] {
        for (action, values) in [("deny", "values"), ("allow", "not_values")] {
            let mut condition = json!({"key": "request.headers[Cookie]"});
            condition[values] = json!([pattern]);
            let policy = json!({"name": "p", "action": action, "rules": [{"when": [condition]}]});
            let filter = TestHost::<Authz>::new(json!({"policies": [policy]})).unwrap();
            let passes = |cookie: &str| filter.request("GET", "/").header("cookie", cookie).send().continued();
            for spelling in spellings {
                assert!(!passes(spelling), "{action} {pattern} {spelling:?}");
            }
            assert!(passes("role=user; xrole=\"user\""), "{action} {pattern}");
        }
    }
}

/// The same with random encodings: readers decode a cookie's value, and some take `+` for a space.
#[test]
fn no_encoding_of_a_cookie_bypasses_a_policy() {
    let mut random = Random(0xc00c1e);
    let encoded = |value: &str, random: &mut Random| -> String {
        let encode = |byte: u8| match byte {
            b' ' => random.one_of(&["+", "%20", " "]).to_owned(),
            _ if random.chance() => format!("%{byte:02x}"),
            b'%' => "%25".into(),
            _ => char::from(byte).to_string(),
        };
        value.bytes().map(encode).collect()
    };
    for _ in 0..500 {
        let value = random.one_of(&["admin", "super admin", "a/b", "50%25", "x=y"]);
        let (written, sent) = (encoded(value, &mut random), encoded(value, &mut random));
        for (action, values) in [("deny", "values"), ("allow", "not_values")] {
            let mut condition = json!({"key": "request.headers[cookie]"});
            condition[values] = json!([format!("role={written}")]);
            let policy = json!({"name": "p", "action": action, "rules": [{"when": [condition]}]});
            let filter = TestHost::<Authz>::new(json!({"policies": [policy]})).unwrap();
            let passes = |cookie: String| filter.request("GET", "/").header("cookie", &cookie).send().continued();
            assert!(!passes(format!("a=1; role={sent}")), "{action} {written} as {sent}");
            assert!(passes(format!("role=user; xrole={sent}")), "{action} {written} as {sent}");
        }
    }
}

/// Where a match grants access, no encoding is decoded.
#[test]
fn encoded_cookie_does_not_grant_access() {
    for (action, values) in [("allow", "values"), ("deny", "not_values")] {
        let mut condition = json!({"key": "request.headers[cookie]"});
        condition[values] = json!(["role=admin"]);
        let policy = json!({"name": "p", "action": action, "rules": [{"when": [condition]}]});
        let filter = TestHost::<Authz>::new(json!({"policies": [policy]})).unwrap();
        let passes = |cookie: &str| filter.request("GET", "/").header("cookie", cookie).send().continued();
        assert!(passes("role=admin") && !passes("role=%61dmin"), "{action}");
    }
}

#[test]
fn default_port_of_the_scheme_is_implied() {
    for (scheme, pattern, denied) in [
        ("http", "example.com:80", true),
        ("http", "example.com:443", false),
        ("https", "example.com:443", true),
        ("https", "example.com:80", false),
    ] {
        let rules = json!([{"to": [{"operation": {"hosts": [pattern]}}]}]);
        let policy = json!({"name": "p", "action": "deny", "rules": rules});
        let filter = TestHost::<Authz>::new(json!({"policies": [policy]})).unwrap();
        let verdict = |host: &str| filter.request("GET", "/").scheme(scheme).host(host).send().continued();
        let port = if scheme == "http" { "80" } else { "443" };
        for host in ["example.com".to_owned(), format!("example.com:{port}")] {
            assert_eq!(verdict(&host), !denied, "{scheme} {pattern} {host}");
        }
    }
}
