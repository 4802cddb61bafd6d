//! Generates a WebAssembly module from a case file: a function per script, the callbacks that run them, and the answers
//! to queries for verdicts.
//!
//! Its memory: up to 2048 the scripts' own, then the texts, verdicts from 128 KiB, and the allocator's part from 256
//! KiB.

use std::{collections::HashMap, fmt::Write};

use tollgate_abi::{Function, Ty, fast, proxy_wasm};

use super::{
    harness::wasm,
    script::{Case, File, Kind, OLD, Operand, Slot, Statement, callback, constant, function, ty},
};

/// Size of the module's memory, in bytes.
pub const END: i32 = 16 << 16;

/// Code common to all modules. A verdict has 16 bytes: the state (1 passed, 2 failed), the callbacks done, the line,
/// the value.
const PRELUDE: &str = r#"
(memory (export "memory") 16)
(global $case (mut i32) (i32.const -1))
(global $stream (mut i32) (i32.const 0))
(global $free (mut i32) (i32.const 0x40000))
;; The host never calls a module that it is called by, but for the allocator.
(global $inside (mut i32) (i32.const 0))
;; One more than the address that the allocator gives, whatever it is asked for.
(global $broken (mut i32) (i32.const 0))
(func (export "malloc") (param $size i32) (result i32)
    (local $at i32)
    (if (global.get $broken) (then (return (i32.sub (global.get $broken) (i32.const 1)))))
    (local.set $at (global.get $free))
    (if (i32.gt_u (i32.add (local.get $at) (local.get $size)) (i32.const 0x100000))
        (then (local.set $at (i32.const 0x40000))))
    (global.set $free (i32.add (local.get $at) (local.get $size)))
    (local.get $at))
(func $verdict (param $case i32) (result i32)
    (i32.add (i32.const 0x20000) (i32.shl (local.get $case) (i32.const 4))))
(func $done (result i32) (i32.load offset=4 (call $verdict (global.get $case))))
(func $next (i32.store offset=4 (call $verdict (global.get $case)) (i32.add (call $done) (i32.const 1))))
(func $pass (if (i32.eqz (i32.load (call $verdict (global.get $case))))
    (then (i32.store (call $verdict (global.get $case)) (i32.const 1)))))
(func $fail (param $line i32) (param $got i32)
    (local $verdict i32)
    (local.set $verdict (call $verdict (global.get $case)))
    (i32.store (local.get $verdict) (i32.const 2))
    (i32.store offset=8 (local.get $verdict) (local.get $line))
    (i32.store offset=12 (local.get $verdict) (local.get $got)))
(func $same (param $a i32) (param $b i32) (param $len i32) (result i32)
    (loop $more
        (if (i32.eqz (local.get $len)) (then (return (i32.const 1))))
        (local.set $len (i32.sub (local.get $len) (i32.const 1)))
        (br_if $more (i32.eq (i32.load8_u (i32.add (local.get $a) (local.get $len)))
            (i32.load8_u (i32.add (local.get $b) (local.get $len))))))
    (i32.const 0))
;; Three digits in a header's value, or -1.
(func $asked (param $name i32) (param $len i32) (result i32)
    (local $at i32)
    (if (call $proxy_get_header_map_value (i32.const 0) (local.get $name) (local.get $len)
            (i32.const 0x1f000) (i32.const 0x1f004)) (then (return (i32.const -1))))
    (if (i32.ne (i32.load (i32.const 0x1f004)) (i32.const 3)) (then (return (i32.const -1))))
    (local.set $at (i32.load (i32.const 0x1f000)))
    (i32.sub (i32.add (i32.add (i32.mul (i32.load8_u (local.get $at)) (i32.const 100))
        (i32.mul (i32.load8_u offset=1 (local.get $at)) (i32.const 10))) (i32.load8_u offset=2 (local.get $at)))
        (i32.const 5328)))
;; Answers with the verdict's bytes.
(func $tell (param $case i32)
    (drop (call $proxy_send_local_response (i32.const 200) (i32.const 0) (i32.const 0)
        (call $verdict (local.get $case)) (i32.const 16) (i32.const 0) (i32.const 0) (i32.const -1))))
"#;

/// Beginning of the request headers callback: does the request ask for a verdict, or for a case?
const ASKED: &str = r#"
    (global.set $broken (i32.const 0))
    (local.set $asked (call $asked RESULT))
    (if (i32.ge_s (local.get $asked) (i32.const 0)) (then (call $tell (local.get $asked)) (return (i32.const 0))))
    (local.set $asked (call $asked ARM))
    (if (i32.ge_s (local.get $asked) (i32.const 0)) (then
        (global.set $case (local.get $asked)) (global.set $stream (i32.const 0))
        (call $tell (local.get $asked)) (return (i32.const 0))))
    (local.set $asked (call $asked CASE))
    (if (i32.ge_s (local.get $asked) (i32.const 0)) (then
        (global.set $case (local.get $asked)) (global.set $stream (local.get $arg0))))
"#;

/// State while the module is generated.
#[derive(Default)]
struct Writer {
    texts: Vec<u8>,
    places: HashMap<Vec<u8>, usize>,
    names: Vec<String>,
    imports: Vec<&'static Function>,
    code: String,
    /// Number of the current case.
    case: usize,
}

/// Generates the module of these cases.
pub fn module(file: &File) -> Vec<u8> {
    let mut w = Writer::default();
    for name in ["proxy_get_header_map_value", "proxy_send_local_response"] {
        w.import(function(name).expect("a Proxy-Wasm function"));
    }
    // The callbacks through which it learns which case is requested, and which connection is meant.
    let mut callbacks = vec![callback("request_headers").expect("a callback")];
    if file.cases.iter().any(Case::is_tcp) {
        callbacks.push(callback("new_connection").expect("a callback"));
    }
    for (nth, case) in file.cases.iter().enumerate() {
        for (at, phase) in case.phases.iter().enumerate() {
            if !callbacks.contains(&phase.callback) {
                callbacks.push(phase.callback);
            }
            w.script(file, nth, at, case);
        }
    }
    for callback in callbacks {
        w.callback(file, callback);
    }
    let Writer { texts, names, imports, code, .. } = w;
    assert!(2048 + texts.len() < 0x1f000, "{}: too much text", file.name);
    let mut out = String::from("(module\n");
    for f in imports {
        let params: String = f.params.iter().map(|(_, t)| format!(" {}", ty(*t))).collect();
        let result = f.result.map_or(String::new(), |t| format!("(result {})", ty(t)));
        let module = import_module(f, file);
        let _ = writeln!(out, "(import \"{module}\" \"{0}\" (func ${0} (param{params}) {result}))", f.name);
    }
    out += PRELUDE;
    let _ = writeln!(out, "(func (export \"proxy_abi_version_{}\"))", file.abi);
    for name in names {
        let _ = writeln!(out, "(global $v_{name} (mut i32) (i32.const 0))");
    }
    let texts: String = texts.iter().map(|byte| format!("\\{byte:02x}")).collect();
    wasm::from_text(&format!("{out}{code}(data (i32.const 2048) \"{texts}\"))"))
}

fn import_module(f: &Function, file: &File) -> &'static str {
    let is_in = |all: &[Function]| all.iter().any(|g| g.name == f.name);
    match () {
        () if is_in(proxy_wasm::HOSTCALLS) || is_in(OLD) => proxy_wasm::MODULE,
        () if is_in(fast::HOSTCALLS) => fast::MODULE,
        () => file.wasi,
    }
}

impl Writer {
    fn import(&mut self, f: &'static Function) {
        if !self.imports.iter().any(|g| g.name == f.name) {
            self.imports.push(f);
        }
    }

    fn text(&mut self, bytes: &[u8]) -> usize {
        let texts = &mut self.texts;
        2048 + *self.places.entry(bytes.to_vec()).or_insert_with(|| {
            texts.extend_from_slice(bytes);
            texts.len() - bytes.len()
        })
    }

    /// Adds a text and returns its address and length as call arguments.
    fn range(&mut self, text: &str) -> String {
        format!("(i32.const {}) (i32.const {})", self.text(text.as_bytes()), text.len())
    }

    /// Generates the callback with all scripts that may run in it.
    fn callback(&mut self, file: &File, callback: &Function) {
        let old_head = file.abi == "0_1_0" && callback.name.ends_with("_headers");
        let params = &callback.params[..callback.params.len() - usize::from(old_head)];
        let typed = |(nth, (_, t)): (usize, &(&str, Ty))| format!("(param $arg{nth} {})", ty(*t));
        let params: Vec<String> = params.iter().enumerate().map(typed).collect();
        let passed = |nth: usize, t: Ty| match nth < params.len() {
            true => format!("(local.get $arg{nth})"),
            false => format!("({}.const 0)", ty(t)),
        };
        let passed: String = callback.params.iter().enumerate().map(|(nth, (_, t))| passed(nth, *t)).collect();
        let given: String = (0..params.len()).map(|nth| format!("(local.get $arg{nth})")).collect();
        let result = if callback.result.is_some() { "(result i32)" } else { "" };
        let (name, params) = (callback.name, params.concat());
        let mut code = format!(
            "(func (export \"{name}\") {params} {result}
                (if (global.get $inside) (then unreachable))
                (global.set $inside (i32.const 1))
                (call $on_{name} {given})
                (global.set $inside (i32.const 0)))
            (func $on_{name} {params} {result} (local $asked i32)\n"
        );
        let back =
            |value: &str| if callback.result.is_some() { format!("(return {value})") } else { "(return)".into() };
        if callback.name == "proxy_on_request_headers" {
            let [result, arm, case] = ["x-result", "x-arm", "x-case"].map(|name| self.range(name));
            code += &ASKED.replace("RESULT", &result).replace("ARM", &arm).replace("CASE", &case);
        }
        if callback.name == "proxy_on_new_connection" {
            code += "(if (i32.eqz (global.get $stream)) (then (global.set $stream (local.get $arg0))))\n";
        }
        // These callbacks precede any request: every case that expects them runs.
        let early = ["_initialize", "proxy_on_vm_start", "proxy_on_configure", "proxy_on_context_create"];
        let early = early.contains(&callback.name);
        let default = if matches!(callback.name, "proxy_on_vm_start" | "proxy_on_configure" | "proxy_on_done") {
            "(i32.const 1)"
        } else {
            "(i32.const 0)"
        };
        let body_part = ["_body", "stream_data"].iter().any(|end| callback.name.ends_with(end));
        // An empty last part of a body does not count as a part.
        if body_part {
            let _ = writeln!(code, "(if (i32.eqz (local.get $arg1)) (then {}))", back("(i32.const 0)"));
        }
        if early {
            code += "(local.set $asked (global.get $case))\n";
        }
        for (nth, case) in file.cases.iter().enumerate() {
            for (at, phase) in case.phases.iter().enumerate() {
                if phase.callback.name != callback.name {
                    continue;
                }
                let run = format!("(call $script_{nth}_{at} {passed})");
                let turn = format!("(i32.eq (call $done) (i32.const {at}))");
                if early {
                    let _ = writeln!(code, "(global.set $case (i32.const {nth})) (if {turn} (then (drop {run})))");
                    continue;
                }
                let concerns = match callback.params.first() {
                    Some(("context", _)) => "(i32.eq (global.get $stream) (local.get $arg0))",
                    _ => "(i32.const 1)",
                };
                let _ = writeln!(
                    code,
                    "(if (i32.eq (global.get $case) (i32.const {nth})) (then (if {concerns} (then (if {turn} (then {}))))))",
                    if callback.result.is_some() { back(&run) } else { format!("(drop {run}) (return)") }
                );
            }
        }
        if early {
            code += "(global.set $case (local.get $asked))\n";
        }
        code += if callback.result.is_some() { default } else { "" };
        self.code += &format!("{code})\n");
    }

    fn script(&mut self, file: &File, nth: usize, at: usize, case: &Case) {
        let phase = &case.phases[at];
        self.case = nth;
        let typed = |(nth, (_, t)): (usize, &(&str, Ty))| format!("(param $arg{nth} {})", ty(*t));
        let params: String = phase.callback.params.iter().enumerate().map(typed).collect();
        let mut code = format!(
            "(func $script_{nth}_{at} {params} (result i32) (local $got i32) (local $got64 i64) (local $i i32)\n\
             (call $next)\n"
        );
        let mut returned = None;
        for statement in &phase.statements {
            code += &self.statement(file, phase.callback, statement);
            code.push('\n');
            if let Kind::Return(value) = &statement.kind {
                returned = Some(*value);
            }
        }
        if at + 1 == case.phases.len() {
            code += "(call $pass)\n";
        }
        self.code += &format!("{code}(i32.const {}))\n", returned.unwrap_or(0));
    }

    fn statement(&mut self, file: &File, callback: &Function, statement: &Statement) -> String {
        let line = statement.line;
        let wrong = |what: &str| -> ! { panic!("{}.case:{line}: {what}", file.name) };
        let fail = |got: &str| format!("(then (call $fail (i32.const {line}) {got}) (return (i32.const 0)))");
        let value = |w: &mut Writer, operand: &Operand, wanted: Ty| {
            w.operand(callback, operand, wanted).unwrap_or_else(|e| wrong(&e))
        };
        match &statement.kind {
            Kind::Compare(left, op, right) => {
                let t = type_of(left).max_of(type_of(right));
                let (left, right) = (value(self, left, t), value(self, right, t));
                let op = match *op {
                    "=" => "eq",
                    "!=" => "ne",
                    "<" => "lt_s",
                    ">" => "gt_s",
                    _ => "ge_s",
                };
                let (local, got) = match t {
                    Ty::I32 => ("$got", "(local.get $got)"),
                    Ty::I64 => ("$got64", "(i32.wrap_i64 (local.get $got64))"),
                };
                let t = ty(t);
                format!(
                    "(local.set {local} {left}) (if (i32.eqz ({t}.{op} (local.get {local}) {right})) {})",
                    fail(got)
                )
            }
            Kind::Given(at, bytes) => {
                let at = value(self, &Operand::Value(at.clone()), Ty::I32);
                let place = self.text(bytes);
                let len = bytes.len();
                format!(
                    "(if (i32.ne (i32.load offset=4 {at}) (i32.const {len})) {})\n\
                     (if (i32.eqz (call $same (i32.load {at}) (i32.const {place}) (i32.const {len}))) {})",
                    fail(&format!("(i32.load offset=4 {at})")),
                    fail("(i32.const -1)")
                )
            }
            Kind::Bytes(at, bytes) => {
                let at = value(self, &Operand::Value(at.clone()), Ty::I32);
                let place = self.text(bytes);
                let len = bytes.len();
                let got = fail(&format!("(i32.load8_u {at})"));
                format!("(if (i32.eqz (call $same {at} (i32.const {place}) (i32.const {len}))) {got})")
            }
            Kind::Let(name, from) => {
                let from = value(self, from, Ty::I32);
                let name = format!("{}_{name}", self.case);
                let set = format!("(global.set $v_{name} {from})");
                if !self.names.contains(&name) {
                    self.names.push(name);
                }
                set
            }
            Kind::Put(at, from) => {
                let at = value(self, &Operand::Value(at.clone()), Ty::I32);
                format!("(i32.store {at} {})", value(self, from, Ty::I32))
            }
            Kind::Do(call) => match call {
                Operand::Call(f, _) if f.result.is_none() => value(self, call, Ty::I32),
                _ => format!("(drop {})", value(self, call, type_of(call))),
            },
            Kind::Repeat(count) => {
                format!("(local.set $i (i32.const {count})) (loop $again")
            }
            Kind::End => "(local.set $i (i32.sub (local.get $i) (i32.const 1))) (br_if $again (local.get $i)))".into(),
            Kind::Return(_) => String::new(),
            Kind::Raw(code) => code.clone(),
        }
    }

    fn operand(&mut self, callback: &Function, operand: &Operand, wanted: Ty) -> Result<String, String> {
        match operand {
            Operand::Value(word) => self.value(callback, word, wanted),
            Operand::Call(f, slots) => {
                self.import(f);
                let mut arguments = String::new();
                for (slot, (_, t)) in slots.iter().zip(f.params) {
                    arguments += &match slot {
                        Slot::Text(bytes) => format!("(i32.const {})", self.text(bytes)),
                        Slot::Value(word) => self.value(callback, word, *t)?,
                    };
                }
                Ok(format!("(call ${} {arguments})", f.name))
            }
        }
    }

    fn value(&self, callback: &Function, word: &str, wanted: Ty) -> Result<String, String> {
        let word = word.trim();
        if let Some(number) = constant(word) {
            // Addresses and lengths may be written as unsigned numbers.
            let number = if wanted == Ty::I32 { i64::from(number as i32) } else { number };
            return Ok(format!("({}.const {number})", ty(wanted)));
        }
        let (code, has) = if let Some((load, at)) = word.strip_suffix(']').and_then(|t| t.split_once('[')) {
            let at = self.value(callback, at, Ty::I32)?;
            match load {
                "" => (format!("(i32.load {at})"), Ty::I32),
                "u8" => (format!("(i32.load8_u {at})"), Ty::I32),
                "u16" => (format!("(i32.load16_u {at})"), Ty::I32),
                "u64" => (format!("(i64.load {at})"), Ty::I64),
                _ => return Err(format!("no such load: {word}")),
            }
        } else if let Some(nth) = word.strip_prefix("arg").and_then(|n| n.parse::<usize>().ok()) {
            let (_, t) = callback.params.get(nth).ok_or("no such parameter")?;
            (format!("(local.get $arg{nth})"), *t)
        } else if word == "i" {
            ("(local.get $i)".to_owned(), Ty::I32)
        } else if self.names.contains(&format!("{}_{word}", self.case)) {
            (format!("(global.get $v_{}_{word})", self.case), Ty::I32)
        } else {
            return Err(format!("what is `{word}`?"));
        };
        Ok(match (has, wanted) {
            (Ty::I32, Ty::I64) => format!("(i64.extend_i32_u {code})"),
            (Ty::I64, Ty::I32) => format!("(i32.wrap_i64 {code})"),
            _ => code,
        })
    }
}

fn type_of(operand: &Operand) -> Ty {
    match operand {
        Operand::Call(f, _) => f.result.unwrap_or(Ty::I32),
        Operand::Value(word) if word.starts_with("u64[") => Ty::I64,
        Operand::Value(_) => Ty::I32,
    }
}

/// The wider of two types.
trait MaxOf {
    fn max_of(self, other: Ty) -> Ty;
}

impl MaxOf for Ty {
    fn max_of(self, other: Ty) -> Ty {
        if self == Ty::I64 { self } else { other }
    }
}
