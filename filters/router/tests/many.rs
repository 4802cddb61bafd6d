//! Ten thousand routes: the lookup gives the same result as a linear scan.

use router::Router;
use serde_json::{Value, json};
use tollgate_sdk::testing::TestHost;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    /// A path of three to five segments from a small set, so that paths often collide.
    fn path(&mut self) -> String {
        let mut path: String = (0..3 + self.below(3)).map(|_| format!("/{}", self.below(12))).collect();
        if self.below(8) == 0 {
            path.push('/');
        }
        path
    }

    fn rule(&mut self) -> Value {
        let path = self.path();
        let mut rule = match self.below(20) {
            0..10 => json!({"path": {"exact": path}}),
            10..19 => json!({"path": {"prefix": path}}),
            _ => json!({"path": {"regex": format!("{path}.")}}),
        };
        if self.below(3) == 0 {
            rule["methods"] = json!(["POST"]);
        }
        if self.below(3) == 0 {
            rule["headers"] = json!([{"name": "x", "exact": self.below(3).to_string()}]);
        }
        rule
    }
}

/// A linear scan, as simple as possible.
fn naive(rules: &[Value], method: &str, path: &str, x: &str) -> Option<usize> {
    rules.iter().position(|rule| {
        let text = |kind: &str| rule["path"][kind].as_str();
        let path_matches = if let Some(exact) = text("exact") {
            path == exact
        } else if let Some(prefix) = text("prefix") {
            let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
            path == prefix || path.starts_with(&format!("{prefix}/"))
        } else {
            let beginning = text("regex").unwrap().strip_suffix('.').unwrap();
            path.len() == beginning.len() + 1 && path.starts_with(beginning)
        };
        let header = &rule["headers"][0]["exact"];
        path_matches && (rule["methods"].is_null() || method == "POST") && (header.is_null() || header == x)
    })
}

#[test]
fn ten_thousand_routes_match_like_a_linear_scan() {
    let mut random = Random(42);
    let rules: Vec<_> = (0..10_000).map(|_| random.rule()).collect();
    let routes: Vec<_> = rules.iter().map(|r| json!({"match": r, "cluster": "c"})).collect();
    let config = json!({"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": routes}]});
    let host = TestHost::<Router>::new(config).unwrap();
    let (mut found, mut missed, mut late) = (0, 0, 0);
    for _ in 0..3000 {
        let (path, x) = (random.path(), random.below(4).to_string());
        let method = if random.below(2) == 0 { "GET" } else { "POST" };
        let expected = naive(&rules, method, &path, &x);
        let outcome = host.request(method, &format!("{path}?q")).header("x", &x).send();
        assert_eq!(outcome.route().map(String::from), expected.map(|i| format!("v/{i}")), "{method} {path} {x}");
        match expected {
            Some(i) if i > 1000 => late += 1,
            Some(_) => found += 1,
            None => missed += 1,
        }
    }
    // The comparison is meaningful only if all of these occur.
    assert!(found > 100 && missed > 5 && late > 100, "{found} found, {missed} missed, {late} late");
}
