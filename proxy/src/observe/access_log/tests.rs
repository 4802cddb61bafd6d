//! Tests of the lines and their destinations.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    net::SocketAddr,
    os::{fd::AsRawFd, unix::fs::PermissionsExt},
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant, SystemTime},
};

use tollgate_abi::{fast::flag, value::Value};

use super::*;
use crate::{
    chain::{charge::MemoryBudget, stored::StreamMetadata},
    observe::metrics::Registry,
};

const DROPPED: &str = "tollgate_access_log_dropped_total";
const LONG: Duration = Duration::from_secs(60);

fn config(to: &str, format: &str) -> model::AccessLog {
    model::AccessLog { to: to.into(), format: format.into() }
}

fn entry() -> Entry<'static> {
    let start = SystemTime::UNIX_EPOCH + Duration::from_millis(1_234_567_890_120);
    Entry {
        path: b"/x",
        method: "GET",
        status: 200,
        ..Entry::new(start, "main", SocketAddr::from(([127, 0, 0, 1], 5000)))
    }
}

fn line(format: &str, entry: &Entry<'_>) -> String {
    let mut out = Vec::new();
    Format::parse(format).unwrap().write(entry, &mut out);
    String::from_utf8(out).unwrap()
}

fn json(entry: &Entry<'_>) -> serde_json::Value {
    let text = line("json", entry);
    assert_eq!(text.find('\n'), Some(text.len() - 1), "{text:?}");
    serde_json::from_str(&text).unwrap()
}

/// A temporary directory of one test, deleted on drop.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tollgate-log-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(name);
        fs::create_dir(&dir).unwrap();
        Dir(dir)
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LONG, "timed out waiting for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn data_stored_by_filters_can_be_logged() {
    let (mut stored, ledger) = (StreamMetadata::default(), MemoryBudget::new(usize::MAX, None));
    let set = [("user", Value::Text("a b\n")), ("level", Value::Integer(-3)), ("share", Value::Number(0.5))];
    for (key, value) in [&set[..], &[("new", Value::Bool(true)), ("empty", Value::Text(""))]].concat() {
        value.with_bytes(|bytes| stored.set_metadata((b"auth", key.as_bytes()), value.kind(), bytes, &ledger)).unwrap();
    }
    stored.set_state(b"wasm.color", b"blue", &ledger).unwrap();
    let format = "%metadata(auth:user)%|%metadata(auth:level)%|%metadata(auth:share)%|%metadata(auth:new)%|\
                  %metadata(auth:empty)%|%metadata(other:user)%|%state(wasm.color)%|%state(color)%";
    let shown = line(format, &Entry { stored: Some(&stored), ..entry() });
    assert_eq!(shown, "a b\\n|-3|0.5|true|-|-|blue|-\n");
    assert_eq!(line("%state(k)%%metadata(a:b)%", &entry()), "--\n");
    assert_eq!(Format::parse("%metadata(auth)%").unwrap_err(), FormatError::Metadata("auth".to_owned()));
}

#[test]
fn text_has_fields_and_dashes_for_missing_values() {
    let fields = [("user".to_owned(), "ann".to_owned()), ("plan".to_owned(), "a b".to_owned())];
    let mut e = Entry { flags: flag::NO_ROUTE | flag::LOCAL_REPLY, fields: &fields, attempts: 2, ..entry() };
    e.timings.total = 1_234_567;
    e.timings.upstream_connect = Some(7);
    let text = line("%start% %listener% %peer% %client% %method% %path% %status% 100%% %flags% %duration_ms%", &e);
    assert_eq!(text, "2009-02-13T23:31:30.120Z main 127.0.0.1:5000 127.0.0.1 GET /x 200 100% NR,LR 1234.567\n");
    let text = line("[%upstream_connect_ms% %upstream_ms% %route% %endpoint% %attempts% \"%user_agent%\"] ü", &e);
    assert_eq!(text, "[0.007 - - - 2 \"-\"] ü\n");
    assert_eq!(line("%fields%|%field(plan)%|%field(none)%", &e), "user=ann,plan=a b|a b|-\n");
    assert_eq!(line("%fields% %flags% %status%", &Entry { status: 0, ..entry() }), "- - -\n");
    let endpoint = "[2001:db8::1]:80".parse().unwrap();
    e.endpoint = Some(&endpoint);
    e.peer = "[::ffff:10.1.2.3]:9".parse().unwrap();
    assert_eq!(line("%endpoint% %peer%", &e), "[2001:db8::1]:80 10.1.2.3:9\n");
}

#[test]
fn headers_can_be_logged() {
    let mut request = http::HeaderMap::new();
    request.append("x-a", "1".parse().unwrap());
    request.append("x-a", http::HeaderValue::from_bytes(b"2\"\xff").unwrap());
    let mut response = http::HeaderMap::new();
    response.insert("server", "s".parse().unwrap());
    let e = Entry { request_headers: Some(&request), response_headers: Some(&response), ..entry() };
    assert_eq!(line("%req(X-A)% %req(b)% %resp(Server)%", &e), "1, 2\\\"\\xff - s\n");
    assert_eq!(line("%req(x-a)%", &entry()), "-\n");
    let format = Format::parse("%req(x-a)%").unwrap();
    assert!(format.request_headers() && !format.response_headers());
    assert!(!Format::parse("json").unwrap().request_headers());
}

#[test]
fn a_client_cannot_forge_lines() {
    let evil = "a\" 200\r\n\u{1b}[2J\\\u{85}\u{2028}\u{202e}é\u{7f}".as_bytes();
    let text = line("\"%user_agent%\"", &Entry { user_agent: evil, ..entry() });
    assert_eq!(text, "\"a\\\" 200\\r\\n\\x1b[2J\\\\\\u{85}\\u{2028}\\u{202e}é\\x7f\"\n");
    let text = line("%path%", &Entry { path: b"/\xff\xc3(\n", ..entry() });
    assert_eq!(text, "/\\xff\\xc3(\\n\n");
    let name = [("k\n,x=\"".to_owned(), "v\n".to_owned())];
    assert_eq!(line("%fields%", &Entry { fields: &name, ..entry() }), "k\\n,x=\\\"=v\\n\n");

    let e = Entry { user_agent: evil, path: b"/\xff\x00", fields: &name, details: "\"},{", ..entry() };
    let raw = line("json", &e);
    assert!(!raw.trim_end().chars().any(|c| c.is_control() || c == '\u{2028}' || c == '\u{202e}'), "{raw:?}");
    let value = json(&e);
    assert_eq!(value["user_agent"], std::str::from_utf8(evil).unwrap());
    assert_eq!(value["path"], "/\u{fffd}\0");
    assert_eq!(value["fields"]["k\n,x=\""], "v\n");
    assert_eq!(value["details"], "\"},{");
}

#[test]
fn every_byte_survives_json() {
    for byte in 0..=255u8 {
        let bytes = [b'a', byte, b'b'];
        let value = json(&Entry { path: &bytes, ..entry() });
        assert_eq!(value["path"], String::from_utf8_lossy(&bytes).as_ref());
    }
}

#[test]
fn json_has_every_field() {
    let mut e = Entry { flags: flag::RATE_LIMITED | flag::BODY_TOO_LARGE, ..entry() };
    e.timings.total = 5;
    let value = json(&e);
    let expected = "start request_id listener peer client method authority path upstream_path protocol status grpc_status flags \
        details upstream_failure downstream_failure request_bytes response_bytes duration_ms request_received_ms \
        chain_request_ms upstream_connect_ms upstream_first_byte_ms upstream_ms route cluster endpoint attempts \
        user_agent referer fields";
    assert_eq!(value.as_object().unwrap().keys().map(String::as_str).collect::<Vec<_>>().join(" "), expected);
    assert_eq!(value["start"], "2009-02-13T23:31:30.120Z");
    assert_eq!(value["flags"], "RL,OM");
    assert_eq!(value["duration_ms"], 0.005);
    assert_eq!(value["status"], 200);
    for missing in ["route", "endpoint", "upstream_ms", "fields", "details"] {
        assert!(value[missing].is_null(), "{missing}");
    }
    assert!(json(&entry())["flags"].is_null());
}

#[test]
fn invalid_formats_are_explained() {
    let error = |format| Format::parse(format).unwrap_err();
    let unknown = error("%status% %durationms%");
    assert!(matches!(&unknown, FormatError::Unknown { suggestion: Some("duration_ms"), .. }), "{unknown:?}");
    let message = unknown.to_string();
    assert!(message.ends_with("did you mean `%duration_ms%`?"), "{message}");
    assert!(error("%qqq%").to_string().contains("%route%"));
    assert!(matches!(error("%STATUS%"), FormatError::Unknown { suggestion: Some("status"), .. }));
    assert!(matches!(error("%qqq%"), FormatError::Unknown { suggestion: None, .. }));
    assert!(matches!(error("%status(a)%"), FormatError::Unknown { .. }));
    assert_eq!(error("ä %status% %"), FormatError::Unterminated { at: 12 });
    assert_eq!(error("%req(a b)%"), FormatError::Header("a b".into()));
    assert_eq!(error("%resp()%"), FormatError::Header(String::new()));
    assert_eq!(error("%path%\n"), FormatError::Control('\n'));
    for constant in ["", "JSON", "100%%"] {
        assert_eq!(error(constant), FormatError::Constant);
    }
    assert_eq!(line("%path%\t%%%status%%%", &entry()), "/x\t%200%\n");
}

#[test]
fn lines_are_written_without_a_full_buffer_and_completely_at_close() {
    let dir = Dir::new();
    let path = dir.file("a.log");
    let registry = Registry::new(2);
    let writer = LogWriter::start(&registry).unwrap();
    let log = AccessLog::open(&config(&path, "%path%"), &writer).unwrap();
    log.log(Shard::worker(0), &entry());
    wait_for("the tick", || fs::read(&path).unwrap() == b"/x\n");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o027, 0);

    let other = AccessLog::open(&config(&path, "%path%"), &writer).unwrap();
    thread::scope(|scope| {
        for worker in 0..2 {
            let (log, other) = (&log, &other);
            scope.spawn(move || {
                for i in 0..20_000 {
                    let path = format!("/{worker}/{i}");
                    let log = if i % 2 == 0 { log } else { other };
                    log.log(Shard::worker(worker), &Entry { path: path.as_bytes(), ..entry() });
                }
            });
        }
    });
    drop(other);
    assert_eq!((writer.close(LONG), writer.close(LONG)), (0, 0));
    let text = fs::read_to_string(&path).unwrap();
    for worker in 0..2 {
        for odd in 0..2 {
            let prefix = format!("/{worker}/");
            let found: Vec<u32> = text
                .lines()
                .filter_map(|line| line.strip_prefix(&prefix)?.parse().ok())
                .filter(|i| i % 2 == odd)
                .collect();
            assert!(found.iter().copied().eq((0..20_000).filter(|i| i % 2 == odd)), "in order and complete");
        }
    }
    assert_eq!(text.lines().count(), 40_001);

    // After the end nothing blocks, and lost lines are counted.
    log.log(Shard::CONTROL, &entry());
    drop(log);
    assert_eq!(registry.value(DROPPED, &[("reason", "overflow")]), Some(1.0));
}

#[test]
fn writer_sleeps_until_the_next_line() {
    let dir = Dir::new();
    let path = dir.file("a.log");
    let writer = LogWriter::start(&Registry::new(2)).unwrap();
    let log = AccessLog::open(&config(&path, "%path%"), &writer).unwrap();
    for lines in 1..5 {
        wait_for("the writer to sleep", || writer.shared.is_asleep());
        log.log(Shard::worker(lines % 2), &entry());
        wait_for("the line", || fs::read_to_string(&path).unwrap().lines().count() == lines);
    }
}

/// Workers log just when the writer falls asleep, over and over: no line waits for the next one.
#[test]
fn line_logged_while_the_writer_falls_asleep_is_written() {
    let dir = Dir::new();
    let path = dir.file("a.log");
    let writer = LogWriter::start(&Registry::new(2)).unwrap();
    let log = AccessLog::open(&config(&path, "%path%"), &writer).unwrap();
    for nth in 1..=10 {
        for worker in 0..2 {
            log.log(Shard::worker(worker), &entry());
        }
        wait_for("the lines", || fs::read_to_string(&path).unwrap().lines().count() == 2 * nth);
        // The writer checks for lines 100 ms after it has written the last ones, then sleeps.
        thread::sleep(Duration::from_millis(90 + 2 * nth as u64));
    }
}

#[test]
fn more_buffers_than_the_queue_holds_are_all_written() {
    let dir = Dir::new();
    let path = dir.file("a.log");
    let registry = Registry::new(600);
    let writer = LogWriter::start(&registry).unwrap();
    let log = AccessLog::open(&config(&path, "%path%"), &writer).unwrap();
    for worker in 0..600 {
        log.log(Shard::worker(worker), &entry());
    }
    assert_eq!(writer.close(LONG), 0);
    assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 600);
}

#[test]
fn a_blocked_writer_loses_lines_but_does_not_block_workers() {
    let (mut reader, pipe) = io::pipe().unwrap();
    let registry = Registry::new(1);
    let writer = LogWriter::start(&registry).unwrap();
    let log = AccessLog::open(&config(&format!("/proc/self/fd/{}", pipe.as_raw_fd()), "%path%"), &writer).unwrap();
    drop(pipe);
    let path = vec![b'x'; 999];
    let logged = 8_000;
    // If logging waited for the reader, the loop would never end.
    for _ in 0..logged {
        log.log(Shard::worker(0), &Entry { path: &path, ..entry() });
    }
    let dropped = registry.value(DROPPED, &[("reason", "overflow")]).unwrap() as usize;
    assert!(dropped > 1_000, "{dropped}");
    let unwritten = writer.close(Duration::from_millis(50)) as usize;
    // A pipe holds 64 KiB of lines.
    assert!(
        (logged - dropped - 100..=logged - dropped).contains(&unwritten),
        "without a reader: {unwritten}, {dropped}"
    );

    let reading = thread::spawn(move || {
        let mut text = Vec::new();
        reader.read_to_end(&mut text).unwrap();
        text
    });
    assert_eq!(writer.close(LONG), 0);
    drop(log);
    let text = reading.join().unwrap();
    let dropped = registry.value(DROPPED, &[("reason", "overflow")]).unwrap() as usize;
    assert!(text.split_inclusive(|b| *b == b'\n').all(|line| line.len() == 1000), "no line is torn");
    assert_eq!(text.len() / 1000 + dropped, logged, "each line was written or counted");
}

#[test]
fn a_full_disk_is_counted() {
    let registry = Registry::new(1);
    let writer = LogWriter::start(&registry).unwrap();
    let log = AccessLog::open(&config("/dev/full", "%path%"), &writer).unwrap();
    for _ in 0..5 {
        log.log(Shard::worker(0), &entry());
    }
    assert_eq!(writer.close(LONG), 0);
    assert_eq!(registry.value(DROPPED, &[("reason", "error")]), Some(5.0));
}

#[test]
fn a_file_is_rotated_by_opening_it_again() {
    let dir = Dir::new();
    let (path, old) = (dir.file("a.log"), dir.file("a.log.1"));
    let registry = Registry::new(1);
    let writer = LogWriter::start(&registry).unwrap();
    let log = AccessLog::open(&config(&path, "%path%"), &writer).unwrap();
    let say = |path: &str| log.log(Shard::worker(0), &Entry { path: path.as_bytes(), ..entry() });
    say("/1");
    wait_for("the first line", || fs::read(&path).unwrap() == b"/1\n");
    fs::rename(&path, &old).unwrap();
    say("/2");
    wait_for("the second line", || fs::read(&old).unwrap() == b"/1\n/2\n");
    log.reopen().unwrap();
    say("/3");
    wait_for("the third line", || fs::read(&path).unwrap() == b"/3\n");
    assert_eq!(fs::read(&old).unwrap(), b"/1\n/2\n");
    for file in [&path, &old] {
        assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o007, 0, "others have no access");
    }

    // If it cannot be reopened, lines continue to go to the old file.
    let gone = dir.0.with_extension("gone");
    fs::rename(&dir.0, &gone).unwrap();
    assert_eq!(writer.reopen().len(), 1);
    assert!(matches!(log.reopen(), Err(OpenError::Open { .. })));
    say("/4");
    assert_eq!(writer.close(LONG), 0);
    assert_eq!(fs::read(gone.join("a.log")).unwrap(), b"/3\n/4\n");
    fs::rename(&gone, &dir.0).unwrap();
}

#[test]
fn the_standard_streams_need_no_file() {
    let writer = LogWriter::start(&Registry::new(1)).unwrap();
    for to in ["stdout", "stderr"] {
        let log = AccessLog::open(&config(to, "json"), &writer).unwrap();
        log.reopen().unwrap();
    }
    assert!(writer.reopen().is_empty());
    assert!(matches!(AccessLog::open(&config("stdout", "%x%"), &writer), Err(OpenError::Format(_))));
    let error = AccessLog::open(&config("/nowhere/at/all", "json"), &writer).unwrap_err();
    assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
}

#[test]
fn the_next_write_goes_to_the_reopened_file() {
    // The writer is also woken immediately, but not if its queue is full.
    let dir = Dir::new();
    let path = dir.file("a.log");
    let sink = Sink::open(&path).unwrap();
    fs::rename(&path, dir.file("a.log.1")).unwrap();
    sink.reopen().unwrap();
    assert_eq!(sink.write(b"/1\n"), 0);
    assert_eq!(fs::read(&path).unwrap(), b"/1\n");
}

#[test]
fn a_torn_line_is_ended_before_the_next() {
    let dir = Dir::new();
    let path = dir.file("a.log");
    File::create(&path).unwrap().write_all(b"torn").unwrap();
    let sink = Sink::open(&path).unwrap();
    sink.tear();
    assert_eq!(sink.write(b"/1\n"), 0);
    assert_eq!(sink.write(b"/2\n"), 0);
    assert_eq!(fs::read(&path).unwrap(), b"torn\n/1\n/2\n");
}

#[test]
fn opening_a_fifo_without_a_reader_fails_immediately() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let dir = Dir::new();
    let path = dir.file("fifo");
    mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let error = Sink::open(&path).unwrap_err().to_string();
    assert!(error.contains("no process reads from this FIFO"), "{error}");
    let reader = thread::spawn({
        let path = path.clone();
        move || {
            let mut text = String::new();
            File::open(path).unwrap().read_to_string(&mut text).unwrap();
            text
        }
    });
    let sink = loop {
        match Sink::open(&path) {
            Ok(sink) => break sink,
            Err(_) => thread::yield_now(),
        }
    };
    // More than a FIFO holds: writing waits for the reader, it does not fail.
    let line = "0123456789abcde\n".repeat(16 << 10);
    assert_eq!(sink.write(line.as_bytes()), 0);
    drop(sink);
    assert_eq!(reader.join().unwrap(), line);
}
