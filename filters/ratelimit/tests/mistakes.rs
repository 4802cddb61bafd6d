//! Configuration errors: all reported together, each with its path and a correction.

use ratelimit::Ratelimit;
use serde_json::{Value, json};
use tollgate_sdk::testing::{TestHost, refuses_blanks};

fn mistakes(config: Value) -> String {
    TestHost::<Ratelimit>::new(config).map(|_| ()).unwrap_err().to_string()
}

#[test]
fn of_form() {
    let limit = |more: Value| {
        let mut limit = json!({"name": "a", "requests": 1, "per": "1s"});
        more.as_object().into_iter().flatten().for_each(|(k, v)| limit[k] = v.clone());
        json!({"limits": [limit]})
    };
    let table = [
        (json!({}), "missing field `limits`"),
        (json!({"limits": [], "mode": 1}), "mode: unknown field `mode`"),
        (json!({"limits": [], "headers": "on"}), "headers: unknown variant `on`, expected `draft` or `off`"),
        (json!({"limits": [{"name": "a", "requests": 1}]}), "limits[0]: missing field `per`"),
        (limit(json!({"per": 1})), "limits[0].per: invalid type: integer `1`, expected a time with a unit"),
        (limit(json!({"requests": -1})), "limits[0].requests: invalid value: integer `-1`"),
        (
            limit(json!({"key": [{"ip": true}]})),
            "limits[0].key[0]: unknown variant `ip`, expected one of `source`, `header`",
        ),
        (
            limit(json!({"key": [{"source": "server"}]})),
            "limits[0].key[0].source: invalid value: string \"server\", expected `true`, `peer` or `client`",
        ),
        (
            limit(json!({"key": [{"source": false}]})),
            "limits[0].key[0].source: invalid value: boolean `false`, expected `true`, `peer` or `client`",
        ),
        (limit(json!({"on_missing_key": "deny"})), "limits[0].on_missing_key: unknown variant `deny`"),
        (limit(json!({"match": {"host": "x"}})), "limits[0].match.host: unknown field `host`"),
    ];
    for (config, expected) in table {
        let found = mistakes(config);
        assert!(found.starts_with(expected), "{found}\ninstead of\n{expected}");
    }
}

#[test]
fn of_meaning() {
    let found = mistakes(json!({
        "status": 200,
        "limits": [
            {"name": "a b", "requests": 0, "per": "0s"},
            {"name": "a", "requests": 1, "per": "1500us", "burst": 0},
            {"name": "a", "requests": 1, "per": "8000h", "burst": 2},
            {"name": "b", "requests": 1, "per": "1s", "key": [{"header": "x y"}, {"cookie": "a=b"}, {"path": false}], "max_keys": 0},
            {"name": "c", "requests": 4294967295u32, "per": "1s", "ipv6_prefix": 64, "max_keys": 5},
            {"name": "d", "requests": 1, "per": "1s", "key": [{"source": true}], "ipv6_prefix": 129},
            {"name": "e", "requests": 1, "per": "1s", "match": {"path": {"exact": "x"}, "methods": ["get"]}},
            {"name": "f", "requests": 0, "per": "1s", "burst": 5},
            {"name": "g", "requests": 1, "per": "8760h"},
        ],
    }));
    let expected = [
        "limits[0].name: a name has 1 to 64 visible ASCII characters, and no spaces",
        "limits[0].requests: 0 is out of range: write 1 to 2147483647",
        "limits[0].per: an interval is 1ms to a year, in whole milliseconds",
        "limits[1].per: an interval is 1ms to a year, in whole milliseconds",
        "limits[1].burst: 0 is out of range: write 1 to 2147483647",
        "limits[2].name: another limit is called `a` too",
        "limits[2].burst: it takes over a year to gain 2 tokens: lower it, or raise `requests`",
        "limits[3].key[0].header: `x y` is not a valid header name",
        "a name is a word such as `x-user`",
        "limits[3].key[1].cookie: `a=b` is not a cookie's name, such as `session`",
        "limits[3].key[2].path: write `true`, or leave this part out",
        "limits[3].max_keys: 0 is out of range: write at least 1",
        "limits[4].ipv6_prefix: has no effect without a `source` in the key: leave it out",
        "limits[4].requests: 4294967295 is out of range: write 1 to 2147483647",
        "limits[4].max_keys: has no effect without a `key`: leave it out",
        "limits[5].ipv6_prefix: 129 is not a prefix length: write 1 to 128",
        "limits[6].match.path.exact: a path begins with `/`: write `/x`",
        "limits[6].match.methods[0]: `get` matches no method: write `GET`",
        "limits[7].requests: 0 is out of range: write 1 to 2147483647",
        "status: 200 is not an error status: write 400 to 599, such as 429",
    ];
    assert_eq!(found.split("; ").collect::<Vec<_>>(), expected);
}

/// Blanks each value of a configuration in turn: a blank must not be treated like an omitted value.
#[test]
fn blanks() {
    let config = json!({
        "limits": [{
            "name": "a",
            "match": {
                "path": {"prefix": "/a"},
                "methods": ["GET"],
                "headers": [{"name": "x-a", "exact": "1", "invert": true}, {"name": "x-b", "present": true}],
            },
            "key": [{"source": "client"}, {"header": "x-a"}, {"cookie": "c"}, {"path": true}, {"constant": "t"}],
            "requests": 1,
            "per": "1s",
            "burst": 2,
            "max_keys": 1,
            "on_missing_key": "shared",
            "ipv6_prefix": 64,
            "dry_run": true,
        }],
        "dry_run": true,
        "status": 429,
        "headers": "off",
    });
    refuses_blanks::<Ratelimit>(&config);
}
