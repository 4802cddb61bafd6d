//! Configuration errors: all reported together, each with its path and a correction.

use fault::Fault;
use serde_json::{Value, json};
use tollgate_sdk::testing::{TestHost, refuses_blanks};

fn mistakes(config: Value) -> String {
    TestHost::<Fault>::new(config).map(|_| ()).unwrap_err().to_string()
}

#[test]
fn of_form() {
    let table = [
        (json!({"delays": {}}), "delays: unknown field `delays`"),
        (json!({"delay": {"fixed": "1s"}}), "delay: missing field `percent`"),
        (json!({"delay": {"fixed": "soon", "percent": 1}}), "delay.fixed: `soon` is not a time"),
        (json!({"delay": {"fixed": "1s", "percent": 101}}), "delay.percent: 101 is not a percentage from 0 to 100"),
        (json!({"delay": {"uniform": {"min": "1s"}, "percent": 1}}), "delay.uniform: missing field `max`"),
        (json!({"abort": {"percent": 1}}), "abort: missing field `status`"),
        (json!({"abort": {"status": 500, "percent": 0.00001}}), "abort.percent: 0.00001 percent is less than 0.0001"),
        (json!({"abort": {"status": 70000, "percent": 1}}), "abort.status: invalid value: integer `70000`"),
        (json!({"rules": [{}]}), "rules[0]: missing field `match`"),
        (
            json!({"rules": [{"match": {"path": {"regex": "x"}}}]}),
            "rules[0].match.path: unknown variant `regex`, expected one of `exact`",
        ),
        (json!({"headers": 1}), "headers: invalid type: integer `1`, expected `true`, `false` or `{delay: "),
        (json!({"headers": {"delya": {}}}), "headers.delya: unknown field `delya`"),
        (json!({"headers": {"delay": {"max": 5}}}), "headers.delay.max: invalid type: integer `5`, expected a time"),
        (json!({"max_active": -1}), "max_active: invalid value: integer `-1`"),
    ];
    for (config, expected) in table {
        let found = mistakes(config);
        assert!(found.starts_with(expected), "{found}\ninstead of\n{expected}");
    }
}

#[test]
fn of_meaning() {
    let found = mistakes(json!({
        "rules": [
            {"match": {"path": {"prefix": "api"}}, "delay": {"percent": 1}, "abort": {"status": 199, "percent": 1}},
            {"match": {}, "delay": {"uniform": {"min": "2s", "max": "1s"}, "percent": 1}},
            {"match": {}, "delay": {"uniform": {"min": "2s", "max": "2h"}, "percent": 1}},
            {"match": {}, "delay": {"exponential": {"mean": "2s", "max": "1s"}, "percent": 1}},
            {"match": {}, "delay": {"exponential": {"mean": "2s", "max": "61m"}, "percent": 1}},
            {"match": {"methods": ["put"]}, "delay": {"fixed": "1s", "uniform": {"min": "1s", "max": "2s"}, "percent": 1}},
        ],
        "delay": {"fixed": "3601s", "percent": 1},
        "abort": {"status": 600, "percent": 1},
        "headers": {"delay": {"max": "2h"}},
        "max_active": 0,
    }));
    let hour = "a delay is at most an hour: write `1h` or less";
    let expected = [
        "rules[0].match.path.prefix: a path begins with `/`: write `/api`",
        "rules[0].delay: give one of `fixed`, `uniform` and `exponential`",
        "rules[0].abort.status: 199 is not a response status: write 200 to 599",
        "rules[1].delay.uniform: `min` is longer than `max`",
        &format!("rules[2].delay.uniform.max: {hour}"),
        "rules[3].delay.exponential: `mean` is longer than `max`",
        &format!("rules[4].delay.exponential.max: {hour}"),
        "rules[5].match.methods[0]: `put` matches no method: write `PUT`",
        "rules[5].delay: give one of `fixed`, `uniform` and `exponential`",
        &format!("delay.fixed: {hour}"),
        "abort.status: 600 is not a response status: write 200 to 599",
        &format!("headers.delay.max: {hour}"),
        "max_active: 0 allows no faults: leave the faults out, or set it to at least 1",
    ];
    assert_eq!(found.split("; ").collect::<Vec<_>>(), expected);
}

/// Blanks each value of a configuration in turn: a blank must not be treated like an omitted value.
#[test]
fn blanks() {
    let config = json!({
        "rules": [{
            "match": {
                "path": {"prefix": "/a"},
                "methods": ["GET"],
                "headers": [{"name": "x-a", "exact": "1", "invert": true}, {"name": "x-b", "present": true}],
            },
            "delay": {"uniform": {"min": "1s", "max": "2s"}, "percent": 1},
            "abort": {"status": 503, "percent": 1},
        }],
        "delay": {"fixed": "1s", "percent": 1},
        "abort": {"status": 503, "percent": 1},
        "headers": {"delay": {"max": "1s", "percent": 1}, "abort": {"percent": 1}},
        "max_active": 1,
    });
    refuses_blanks::<Fault>(&config);
}
