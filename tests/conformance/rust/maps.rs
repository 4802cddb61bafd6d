//! Cases of header maps in the request headers callback.

use super::*;

impl Run {
    /// Runs the cases of header maps in the request headers callback.
    pub(super) fn maps(&mut self, function: &str, about: &str) -> Result<Next, String> {
        let map = Map::HttpRequestHeaders;
        match (function, about) {
            ("proxy_get_header_map_value", "ok") => {
                same!(header(map, "x-one"), some("1"));
                same!(header(map, "X-ONE"), some("1"));
                same!(host::get_map_value_bytes(map, "x-one"), Ok(Some(b"1".to_vec())));
            }
            ("proxy_get_header_map_value", "first-of-several") => same!(header(map, "x-two"), some("a")),
            ("proxy_get_header_map_value", "pseudo-headers") => {
                for (name, value) in
                    [(":method", "POST"), (":path", "/conformance?a=b"), (":authority", "test"), (":scheme", "http")]
                {
                    same!(header(map, name), some(value));
                }
            }
            ("proxy_get_header_map_value", "not-found" | "ok-0.1.0-absent") => {
                same!(header(map, "x-none"), None);
                same!(header(map, "no name"), None);
            }
            ("proxy_get_header_map_value", "not-found-in-this-phase") => {
                for map in [Map::HttpResponseHeaders, Map::HttpRequestTrailers, Map::HttpCallResponseHeaders] {
                    same!(header(map, "x-one"), None);
                }
            }
            ("proxy_get_header_map_pairs", "ok") => {
                let all = host::get_map(map).unwrap();
                yes!(all.contains(&("x-one".into(), "1".into())) && all.contains(&("x-two".into(), "b".into())));
                yes!(all.contains(&(":method".into(), "POST".into())));
                same!(host::get_map_bytes(map).unwrap().len(), all.len());
            }
            ("proxy_get_header_map_pairs", "ok-empty-in-other-phases") => {
                same!(host::get_map(Map::HttpResponseHeaders), Ok(vec![]));
                same!(host::get_map(Map::HttpCallResponseTrailers), Ok(vec![]));
            }
            ("proxy_set_header_map_pairs", "ok") => {
                host::set_map(map, vec![("x-set", "1"), ("x-set", "2")]).unwrap();
                same!((header(map, "x-one"), header(map, "x-set")), (None, some("1")));
                host::set_map_bytes(map, vec![("x-set", b"3")]).unwrap();
                same!(header(map, "x-set"), some("3"));
                same!(header(map, ":method"), some("POST"));
            }
            ("proxy_set_header_map_pairs", "ok-empty") => {
                host::set_map(map, vec![]).unwrap();
                same!(header(map, "x-one"), None);
            }
            ("proxy_set_header_map_pairs", "ok-but-rejected-and-logged") => {
                host::set_map(map, vec![("x-good", "1"), ("bad name", "2")]).unwrap();
                host::set_map(map, vec![("x-good", "1"), ("x-bad", "a\nb")]).unwrap();
                same!((header(map, "x-good"), header(map, "x-one")), (None, some("1")));
            }
            ("proxy_add_header_map_value", "ok") => {
                host::add_map_value(map, "x-new", "n").unwrap();
                host::add_map_value_bytes(map, "x-one", b"2").unwrap();
                same!((header(map, "x-new"), header(map, "x-one")), (some("n"), some("1")));
                let all = host::get_map(map).unwrap();
                same!(all.iter().filter(|(name, _)| name == "x-one").count(), 2);
            }
            ("proxy_add_header_map_value", "ok-but-rejected-and-logged") => {
                host::add_map_value(map, "bad name", "1").unwrap();
                host::add_map_value(map, "x-bad", "a\nb").unwrap();
                host::add_map_value(Map::HttpResponseHeaders, "x-early", "1").unwrap();
                same!(header(map, "x-bad"), None);
            }
            ("proxy_replace_header_map_value", "ok") => {
                host::set_map_value(map, "x-two", Some("c")).unwrap();
                host::set_map_value_bytes(map, "x-new", Some(b"n")).unwrap();
                same!((header(map, "x-two"), header(map, "x-new")), (some("c"), some("n")));
                let all = host::get_map(map).unwrap();
                same!(all.iter().filter(|(name, _)| name == "x-two").count(), 1);
            }
            ("proxy_replace_header_map_value", "ok-but-rejected-and-logged") => {
                host::set_map_value(map, ":path", Some("no slash")).unwrap();
                host::set_map_value(map, "x-one", Some("a\0b")).unwrap();
                same!((header(map, ":path"), header(map, "x-one")), (some("/conformance?a=b"), some("1")));
            }
            ("proxy_remove_header_map_value", "ok") => {
                host::set_map_value(map, "x-two", None).unwrap();
                sdk::remove(map, "X-One");
                sdk::remove(map, "x-none");
                same!((header(map, "x-two"), header(map, "x-one")), (None, None));
            }
            ("proxy_remove_header_map_value", "ok-but-rejected-and-logged") => {
                sdk::remove(map, "bad name");
                sdk::remove(Map::HttpResponseHeaders, "x-up");
            }
            _ => return Ok(NotHere),
        }
        PASSED
    }
}
