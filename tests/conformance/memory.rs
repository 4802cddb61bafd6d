//! Cases that nobody has written: each address and each length of a function out of range, with all else as in the
//! function's case `ok`.

use tollgate_abi::{Function, fast, proxy_wasm::Status, wasi};

use super::{
    module::END,
    script::{Case, File, Kind, Operand, Slot, Statement},
};

/// Addresses that are never looked at: there is nothing to be read from them, or written to them.
const IGNORED: &[(&str, &str)] = &[];

/// Functions that answer with a number, so with a status negated.
const NUMBERS: &[&str] = &[
    "header_intern",
    "header_get",
    "header_get_many",
    "route_define",
    "cluster_exists",
    "bucket_define",
    "bucket_take",
    "limit_define",
    "limit_acquire",
];

/// The cases `FUNCTION/memory` of a file's cases `FUNCTION/ok`.
pub fn cases(file: &File) -> Vec<Case> {
    file.cases.iter().filter(|case| case.name == "ok").filter_map(case).collect()
}

fn case(ok: &Case) -> Option<Case> {
    let mut out = Case { name: "memory".into(), checks: Vec::new(), phases: Vec::new(), ..ok.clone() };
    for phase in &ok.phases {
        let called = phase.statements.iter().position(|s| call(s, &ok.function).is_some());
        let mut phase = phase.clone();
        let Some(at) = called else {
            out.phases.push(phase);
            continue;
        };
        let (function, slots) = call(&phase.statements[at], &ok.function)?;
        let line = phase.statements[at].line;
        let (slots, status) = (slots.to_vec(), invalid(function));
        phase.statements.truncate(at);
        let mut any = false;
        for (nth, (name, _)) in function.params.iter().enumerate() {
            for value in bad(name, slots.get(nth + 1)) {
                if IGNORED.contains(&(function.name, name)) {
                    continue;
                }
                any = true;
                let mut slots = slots.clone();
                slots[nth] = Slot::Value(value.to_string());
                let wanted = Operand::Value(status.to_string());
                let kind = Kind::Compare(Operand::Call(function, slots), "=", wanted);
                // The parameter that is bad is told by the line: there is none so long.
                phase.statements.push(Statement { line: line * 1000 + nth, kind });
            }
        }
        out.phases.push(phase);
        return any.then_some(out);
    }
    None
}

fn call<'a>(statement: &'a Statement, name: &str) -> Option<(&'static Function, &'a [Slot])> {
    match &statement.kind {
        Kind::Compare(Operand::Call(f, slots), ..) | Kind::Let(_, Operand::Call(f, slots)) if f.name == name => {
            Some((f, slots))
        }
        _ => None,
    }
}

/// Bad values for a parameter; `next` is what comes after it.
fn bad(name: &str, next: Option<&Slot>) -> Vec<i32> {
    let short = matches!(next, Some(Slot::Value(len)) if len == "0" || len == "1");
    match name {
        // Where something is written, that has at least four bytes.
        name if name.ends_with("_out") || name == "out" => vec![END - 3, END, i32::MAX, i32::MIN, -1],
        name if name.ends_with("_ptr") || name == "ptr" => {
            let all = [END - 1, i32::MAX, i32::MIN, -1];
            if short { all[1..].to_vec() } else { all.to_vec() }
        }
        name if name.ends_with("_len") || name.ends_with("_cap") => vec![END + 1, i32::MAX, i32::MIN, -1],
        _ => Vec::new(),
    }
}

fn invalid(f: &Function) -> i32 {
    let is_in = |all: &[Function]| all.iter().any(|g| g.name == f.name);
    let status = Status::InvalidMemoryAccess as i32;
    match () {
        () if NUMBERS.contains(&f.name) => -status,
        () if is_in(wasi::HOSTCALLS) && !is_in(fast::HOSTCALLS) => wasi::errno::FAULT,
        () => status,
    }
}
