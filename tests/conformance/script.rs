//! The language of the case files: calls of host functions with their expected results, as data.
//!
//! ```text
//! proxy_get_header_map_value/ok
//!   on request_headers
//!     proxy_get_header_map_value(REQUEST_HEADERS, "x-one", 16, 20) = Ok
//!     given 16 = "1"
//! ```
//!
//! A case is `FUNCTION/NAME` (or `CALLBACK/NAME`), and has one script per callback, in the expected order. A text
//! denotes two arguments, its address and length; so does `pairs{a: b, c: d}`, an encoded map. Other values: numbers,
//! the names of [`CONSTANTS`], `argN` (of the callback), `[16]` (the u32 at an address; `u8[16]`, `u16[16]`,
//! `u64[16]`), `i` (in `repeat`), and names defined with `let`. Statements:
//!
//! | statement | |
//! |---|---|
//! | `A = B`, and `!=`, `<`, `>`, `>=` | compares a call's status or a value |
//! | `given 16 = "text"` | an address and a length were written to 16 and 20, and point to this text |
//! | `bytes 16 = "text"` | this text is at an address |
//! | `let name = A` | names a value, within this case |
//! | `put 16 = A` | writes a u32 to an address |
//! | `repeat 1000` ... `end` | |
//! | `do A` | calls and ignores the result |
//! | `return 1` | returns this from the callback (default: continue, or success) |
//! | `(...)` | WebAssembly text |
//!
//! The test's actions and outside observations follow the scripts: see [`Case::request`] and [`Check`].

use tollgate_abi::{Function, Ty, fast, pairs, proxy_wasm, wasi};

/// Functions that only old modules use.
pub const OLD: &[Function] = tollgate_abi::function_table! {
    fn proxy_get_configuration(data_out: i32, size_out: i32) -> i32;
    fn proxy_continue_request() -> i32;
    fn proxy_continue_response() -> i32;
    fn proxy_clear_route_cache() -> i32;
};

/// Functions besides the callbacks that a module may export and the host calls.
const STARTS: &[Function] = tollgate_abi::function_table! {
    fn _initialize();
};

/// Names for numbers.
pub const CONSTANTS: &[(&str, i32)] = &[
    ("REQUEST_HEADERS", 0),
    ("REQUEST_TRAILERS", 1),
    ("RESPONSE_HEADERS", 2),
    ("RESPONSE_TRAILERS", 3),
    ("GRPC_INITIAL", 4),
    ("GRPC_TRAILING", 5),
    ("CALL_HEADERS", 6),
    ("CALL_TRAILERS", 7),
    ("ANY_RESPONSE", 100),
    ("REQUEST_BODY", 0),
    ("RESPONSE_BODY", 1),
    ("DOWNSTREAM", 2),
    ("UPSTREAM", 3),
    ("CALL_BODY", 4),
    ("GRPC_MESSAGE", 5),
    ("VM_CONFIGURATION", 6),
    ("PLUGIN_CONFIGURATION", 7),
    ("COUNTER", 0),
    ("GAUGE", 1),
    ("HISTOGRAM", 2),
    ("SUCCESS", wasi::errno::SUCCESS),
    ("BADF", wasi::errno::BADF),
    ("FAULT", wasi::errno::FAULT),
    ("INVAL", wasi::errno::INVAL),
    ("NOENT", wasi::errno::NOENT),
    ("NOSYS", wasi::errno::NOSYS),
    ("NOTDIR", wasi::errno::NOTDIR),
    ("NOTSUP", wasi::errno::NOTSUP),
];

/// A case file.
pub struct File {
    pub name: &'static str,
    /// The Proxy-Wasm version of the file's module.
    pub abi: &'static str,
    /// The import module of WASI's functions.
    pub wasi: &'static str,
    pub cases: Vec<Case>,
}

/// A case.
#[derive(Debug, Clone)]
pub struct Case {
    /// The function or callback under test; `name` is the aspect.
    pub function: String,
    pub name: String,
    /// In the expected order.
    pub phases: Vec<Phase>,
    /// `request METHOD TARGET`: replaces the usual request.
    pub request: Option<(String, String)>,
    /// `header NAME: VALUE`: further fields of the request.
    pub headers: Vec<(String, String)>,
    /// `body TEXT`: the body of that request.
    pub body: String,
    /// Further expected effects.
    pub checks: Vec<Check>,
}

impl Case {
    /// Returns the name in modules and in the table.
    pub fn id(&self) -> String {
        format!("{}/{}", self.function, self.name)
    }

    /// Reports whether the case is about a TCP connection.
    pub fn is_tcp(&self) -> bool {
        let tcp = ["new_connection", "stream_data", "_connection_close"];
        let of_tcp = |phase: &Phase| {
            let name = phase.callback.name;
            tcp.iter().any(|word| name.contains(word)) || name.contains("downstream") || name.contains("upstream")
        };
        self.phases.iter().any(of_tcp)
    }

    /// Lists the callbacks in which the case runs.
    pub fn when(&self) -> String {
        let mut names: Vec<&str> = Vec::new();
        for phase in &self.phases {
            let name = short(phase.callback.name);
            if names.last() != Some(&name) {
                names.push(name);
            }
        }
        names.join(", ")
    }
}

/// Returns a callback's name without the common prefix.
pub fn short(callback: &str) -> &str {
    callback.trim_start_matches("proxy_on_").trim_start_matches("tollgate_on_").trim_start_matches('_')
}

/// A case's script for one callback.
#[derive(Debug, Clone)]
pub struct Phase {
    pub callback: &'static Function,
    pub statements: Vec<Statement>,
}

/// An effect visible from outside: `client status = 403`, `upstream header x-a = 1` (`none`: there is no such field),
/// `client body = text`, `log = text`, `metric NAME = 1`, `access FIELD = text`.
/// `client body = text`, `log = text`, `metric NAME = 1`, `access FIELD = text`.
#[derive(Debug, Clone)]
pub struct Check {
    pub line: usize,
    /// Observer: `client`, `upstream`, `log`, `metric`, `access`.
    pub who: String,
    /// Observed value: `status`, `header NAME` and so on.
    pub what: String,
    pub value: String,
}

/// A line of a script.
#[derive(Debug, Clone)]
pub struct Statement {
    pub line: usize,
    pub kind: Kind,
}

/// The effect of a line.
#[derive(Debug, Clone)]
pub enum Kind {
    Compare(Operand, &'static str, Operand),
    Given(String, Vec<u8>),
    Bytes(String, Vec<u8>),
    Let(String, Operand),
    Put(String, Operand),
    Do(Operand),
    Repeat(u32),
    End,
    Return(i32),
    Raw(String),
}

/// A call or a value.
#[derive(Debug, Clone)]
pub enum Operand {
    Call(&'static Function, Vec<Slot>),
    Value(String),
}

/// The value of one parameter.
#[derive(Debug, Clone)]
pub enum Slot {
    /// The address of this text.
    Text(Vec<u8>),
    Value(String),
}

/// Finds the function of this name.
pub fn function(name: &str) -> Option<&'static Function> {
    let stubs = wasi::STUBS.iter().map(|(f, _)| f);
    let all = proxy_wasm::HOSTCALLS.iter().chain(OLD).chain(fast::HOSTCALLS).chain(wasi::HOSTCALLS).chain(stubs);
    all.into_iter().find(|f| f.name == name)
}

/// Finds the callback of this name, with or without the common prefix.
pub fn callback(name: &str) -> Option<&'static Function> {
    let all = proxy_wasm::CALLBACKS.iter().chain(fast::CALLBACKS).chain(STARTS);
    all.into_iter().find(|f| f.name == name || short(f.name) == name)
}

/// Parses a case file; panics with the line of an error.
pub fn parse(name: &'static str, text: &str) -> File {
    let mut file = File { name, abi: "0_2_1", wasi: wasi::MODULES[0], cases: Vec::new() };
    for (nth, line) in text.lines().enumerate() {
        let wrong = |what: &str| -> ! { panic!("{name}.case:{}: {what}: {line}", nth + 1) };
        let indented = line.starts_with(' ');
        let line = line.trim();
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        if line.is_empty() || line.starts_with('#') {
            continue;
        } else if !indented {
            match word {
                "abi" => file.abi = if rest == "0.1.0" { "0_1_0" } else { "0_2_0" },
                "wasi" => file.wasi = wasi::MODULES[1],
                _ => file.cases.push(begin(line).unwrap_or_else(|| wrong("no function or callback"))),
            }
            continue;
        }
        let Some(case) = file.cases.last_mut() else { wrong("no case yet") };
        match word {
            "on" => {
                let callback = callback(rest).unwrap_or_else(|| wrong("no such callback"));
                case.phases.push(Phase { callback, statements: Vec::new() });
            }
            "request" => case.request = rest.split_once(' ').map(|(m, t)| (m.to_owned(), t.to_owned())),
            "body" => case.body = rest.to_owned(),
            "header" => case.headers.extend(rest.split_once(": ").map(|(n, v)| (n.to_owned(), v.to_owned()))),
            "client" | "upstream" | "log" | "metric" | "access" => {
                let (what, value) = rest.split_once('=').unwrap_or_else(|| wrong("nothing to compare with"));
                let [what, value] = [what, value].map(|text| text.trim().to_owned());
                case.checks.push(Check { line: nth + 1, who: word.to_owned(), what, value });
            }
            _ => {
                let kind = statement(line).unwrap_or_else(|e| wrong(&e));
                let Some(phase) = case.phases.last_mut() else { wrong("no callback yet") };
                phase.statements.push(Statement { line: nth + 1, kind });
            }
        }
    }
    file
}

fn begin(line: &str) -> Option<Case> {
    let (about, name) = line.split_once('/')?;
    function(about).or_else(|| callback(about).filter(|f| f.name == about))?;
    let (function, name) = (about.to_owned(), name.to_owned());
    let (request, body) = (None, String::new());
    Some(Case { function, name, phases: Vec::new(), request, headers: Vec::new(), body, checks: Vec::new() })
}

fn statement(line: &str) -> Result<Kind, String> {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    let number = |text: &str| text.trim().parse().map_err(|_| "not a number".to_owned());
    let assigned = || rest.split_once(" = ").ok_or("nothing to compare with");
    Ok(match word {
        "given" => Kind::Given(assigned()?.0.to_owned(), text(assigned()?.1)?),
        "bytes" => Kind::Bytes(assigned()?.0.to_owned(), text(assigned()?.1)?),
        "let" => Kind::Let(assigned()?.0.to_owned(), operand(assigned()?.1)?),
        "put" => Kind::Put(assigned()?.0.to_owned(), operand(assigned()?.1)?),
        "do" => Kind::Do(operand(rest)?),
        "repeat" => Kind::Repeat(number(rest)? as u32),
        "end" => Kind::End,
        "return" => Kind::Return(number(rest)?),
        _ if line.starts_with('(') => Kind::Raw(line.to_owned()),
        _ => {
            let parts = split(line, ' ');
            let at = parts.iter().position(|p| ["=", "!=", "<", ">", ">="].contains(&p.as_str()));
            let at = at.ok_or("neither a statement nor a comparison")?;
            let op = ["=", "!=", "<", ">", ">="].into_iter().find(|op| *op == parts[at]).unwrap_or("=");
            Kind::Compare(operand(&parts[..at].join(" "))?, op, operand(&parts[at + 1..].join(" "))?)
        }
    })
}

fn operand(text: &str) -> Result<Operand, String> {
    let text = text.trim();
    let Some((name, arguments)) = text.strip_suffix(')').and_then(|t| t.split_once('(')) else {
        return Ok(Operand::Value(text.to_owned()));
    };
    let function = function(name).ok_or_else(|| format!("no function `{name}`"))?;
    let mut slots = Vec::new();
    for argument in split(arguments, ',') {
        let argument = argument.trim();
        if argument.ends_with('"') || argument.starts_with("pairs{") {
            let bytes = self::text(argument)?;
            slots.push(Slot::Text(bytes.clone()));
            slots.push(Slot::Value(bytes.len().to_string()));
        } else if !argument.is_empty() {
            slots.push(Slot::Value(argument.to_owned()));
        }
    }
    if slots.len() != function.params.len() {
        return Err(format!("{function}: {} arguments", slots.len()));
    }
    Ok(Operand::Call(function, slots))
}

/// Splits at a character, except within quotes or brackets of any kind.
fn split(text: &str, at: char) -> Vec<String> {
    let (mut parts, mut depth, mut quoted, mut escaped) = (vec![String::new()], 0, false, false);
    for sign in text.chars() {
        match sign {
            '"' if !escaped => quoted = !quoted,
            '(' | '{' if !quoted => depth += 1,
            ')' | '}' if !quoted => depth -= 1,
            _ => {}
        }
        escaped = sign == '\\' && !escaped;
        match parts.last_mut() {
            Some(part) if sign != at || quoted || depth > 0 => part.push(sign),
            _ => parts.push(String::new()),
        }
    }
    parts
}

/// Returns the bytes of `"text"`, with `\0`, `
/// `, `\"`, `\\` and `\xNN`, of `pairs{a: b}`, or of `1000 * "text"`.
fn text(source: &str) -> Result<Vec<u8>, String> {
    if let Some(inner) = source.strip_prefix("pairs{").and_then(|t| t.strip_suffix('}')) {
        let fields = inner.split(", ").filter_map(|f| f.rsplit_once(": "));
        let fields: Vec<_> = fields.map(|(n, v)| Ok((unescaped(n)?, unescaped(v)?))).collect::<Result<_, String>>()?;
        let mut bytes = Vec::new();
        pairs::encode(fields.iter().map(|(n, v)| (&**n, &**v)), &mut bytes);
        return Ok(bytes);
    }
    if let Some((times, inner)) = source.split_once(" * ") {
        let times = times.parse().map_err(|_| "not a number")?;
        return Ok(text(inner)?.repeat(times));
    }
    unescaped(source.strip_prefix('"').and_then(|t| t.strip_suffix('"')).ok_or("not a text")?)
}

fn unescaped(inner: &str) -> Result<Vec<u8>, String> {
    let (mut bytes, mut signs) = (Vec::new(), inner.bytes());
    while let Some(sign) = signs.next() {
        bytes.push(match (sign, sign == b'\\') {
            (sign, false) => sign,
            _ => match signs.next().ok_or("a trailing backslash")? {
                b'0' => 0,
                b'n' => b'\n',
                b'x' => {
                    let digits: String = signs.by_ref().take(2).map(char::from).collect();
                    u8::from_str_radix(&digits, 16).map_err(|_| "not a byte")?
                }
                other => other,
            },
        });
    }
    Ok(bytes)
}

/// Returns the number that a word denotes, if it is one.
pub fn constant(word: &str) -> Option<i64> {
    let (sign, name) = word.strip_prefix('-').map_or((1, word), |name| (-1, name));
    let status = proxy_wasm::Status::ALL.iter().find(|(_, n)| *n == name).map(|(s, _)| i64::from(*s as i32));
    let named = || CONSTANTS.iter().find(|(n, _)| *n == name).map(|(_, value)| i64::from(*value));
    let number = || match name.strip_prefix("0x") {
        Some(digits) => i64::from_str_radix(digits, 16).ok(),
        None => name.parse().ok(),
    };
    status.or_else(named).or_else(number).map(|value| sign * value)
}

/// Returns the type's name in WebAssembly text.
pub fn ty(ty: Ty) -> &'static str {
    if ty == Ty::I32 { "i32" } else { "i64" }
}
