//! Answers of a real API server, which tests/kubernetes/run.py has recorded: kube-apiserver 1.37.2.

use serde_json::json;

use super::{slice::Status, *};

#[test]
fn recorded_answers_are_understood() {
    let shared = Shared::default();
    let list = List::parse(include_bytes!("recorded/list.json")).unwrap();
    shared.namespace.borrow_mut().listed(list).unwrap();
    let wanted = serde_json::from_value(json!({"service": "web", "port": "http"})).unwrap();
    let place = Place { namespace: "shop", region: "eu-1", zone: "" };
    let found = || {
        let namespace = shared.namespace.borrow();
        let all = endpoints(&wanted, place, namespace.slices("web")).unwrap();
        all.iter().map(|one| one.address.to_string()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(found(), "10.99.0.1:8080");
    let mut lines = Lines::default();
    let steps = include_str!("recorded/watch.jsonl").lines().map(|event| {
        lines.push(event.as_bytes());
        lines.push(b"\n");
        let (count, result) = shared.events(&mut lines);
        assert_eq!((count, result), (1, Ok(())));
        found()
    });
    let expected = [
        "10.99.0.1:8080 10.99.0.2:8080",
        "10.99.0.2:8080",
        "10.99.0.2:8080",
        "10.99.0.3:8080",
        "10.99.0.1:8080 10.99.0.3:8080",
    ];
    assert_eq!(steps.collect::<Vec<_>>(), expected);
    assert_eq!(shared.namespace.borrow().version(), Some("228"));
    let slices = shared.namespace.borrow();
    assert_eq!(states(slices.slices("web")), [("ready", 2), ("terminating", 1), ("not_ready", 2)]);
    drop(slices);

    lines.push(include_bytes!("recorded/watch_gone.json"));
    assert_eq!(shared.events(&mut lines).1.unwrap_err().kind, FailureKind::Gone);
    for (answer, code, text) in [
        (&include_bytes!("recorded/unauthorized.json")[..], 401, "Unauthorized"),
        (include_bytes!("recorded/forbidden.json"), 403, "endpointslices.discovery.k8s.io is forbidden: User"),
        (include_bytes!("recorded/continue_gone.json"), 410, "The provided continue parameter is too old"),
    ] {
        let status: Status = serde_json::from_slice(answer).unwrap();
        assert!(status.code == code && status.text().starts_with(text), "{status:?}");
    }
}
