use super::*;

fn locality(path: &str) -> Locality {
    let mut parts = path.split('/').map(str::to_owned);
    let mut next = || parts.next().unwrap_or_default();
    Locality { region: next(), zone: next(), sub_zone: next() }
}

#[test]
fn distance_is_by_the_first_part_that_differs() {
    for (endpoint, node, expected) in [
        ("eu/a/1", "eu/a/1", 0),
        ("eu/a", "eu/a", 0),
        ("eu/a/2", "eu/a/1", 1),
        ("eu/a", "eu/a/1", 1),
        ("eu/b/1", "eu/a/1", 2),
        ("us/a/1", "eu/a/1", 3),
        ("", "eu/a/1", 3),
        ("", "", 3),
    ] {
        assert_eq!(distance(Some(&locality(endpoint)), &locality(node)), expected, "{endpoint} {node}");
    }
}
