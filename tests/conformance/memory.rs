//! Generated cases: each address and each length of a function out of range, with all other arguments as in the
//! function's case `ok`; and allocators that return no memory, or memory that does not exist.

use tollgate_abi::{Function, fast, proxy_wasm::Status, wasi};

use super::{
    module::END,
    script::{Case, File, Kind, Operand, Slot, Statement},
};

/// Parameters that are not accessed (nothing is read or written there), or that have their own limit.
const IGNORED: &[(&str, &str)] = &[
    ("args_get", "argv_out"),
    ("args_get", "data_out"),
    ("poll_oneoff", "events_out"),
    ("fd_write", "iovs_len"),
    ("random_get", "len"),
];

/// Functions that return data through the guest's allocator and whose cases `ok` do so.
pub const ALLOCATING: &[&str] = &[
    "proxy_get_buffer_bytes",
    "proxy_get_header_map_pairs",
    "proxy_get_header_map_value",
    "proxy_get_shared_data",
    "proxy_dequeue_shared_queue",
    "proxy_get_property",
    "proxy_get_configuration",
    "proxy_get_status",
];

/// Functions that return a number, and therefore a negated status.
const NUMBERS: &[&str] = &[
    "header_intern",
    "header_get",
    "header_get_many",
    "route_define",
    "cluster_exists",
    "variant_exists",
    "bucket_define",
    "bucket_take",
    "limit_define",
    "limit_acquire",
    "shared_get",
    "state_get",
    "metadata_get",
];

/// Generates the cases `FUNCTION/memory` and `FUNCTION/allocator` from a file's cases `FUNCTION/ok`.
pub fn cases(file: &File) -> Vec<Case> {
    let ok = || file.cases.iter().filter(|case| case.name == "ok");
    ok().filter_map(case).chain(ok().filter_map(allocator)).collect()
}

/// The same call with every kind of allocator, and the expected status for each.
fn allocator(ok: &Case) -> Option<Case> {
    let kinds = [
        (0, Status::InternalFailure),
        (END, Status::InvalidMemoryAccess),
        (i32::MIN, Status::InvalidMemoryAccess),
        (-2, Status::InvalidMemoryAccess),
    ];
    let mut out = Case { name: "allocator".into(), checks: Vec::new(), phases: Vec::new(), ..ok.clone() };
    let is_call = |s: &Statement| ALLOCATING.contains(&&*ok.function) && call(s, &ok.function).is_some();
    for phase in &ok.phases {
        let mut phase = phase.clone();
        let called = phase.statements.iter().position(is_call);
        if let Some(at) = called {
            let (function, slots) = call(&phase.statements[at], &ok.function)?;
            let (slots, line) = (slots.to_vec(), phase.statements[at].line);
            // A queue's message is removed whatever the allocator does.
            let again: Vec<Statement> = phase.statements[..at].to_vec();
            let gives = |value: i32| format!("(global.set $broken (i32.const {}))", value.wrapping_add(1));
            phase.statements.clear();
            for (value, status) in kinds {
                let wanted = Operand::Value((status as i32).to_string());
                let kind = Kind::Compare(Operand::Call(function, slots.clone()), "=", wanted);
                phase.statements.extend(again.iter().cloned());
                phase.statements.push(Statement { line, kind: Kind::Raw(gives(value)) });
                phase.statements.push(Statement { line, kind });
                phase.statements.push(Statement { line, kind: Kind::Raw(gives(-1)) });
            }
        }
        out.phases.push(phase);
        if called.is_some() {
            return Some(out);
        }
    }
    None
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
                // The line number encodes the bad parameter; no file is that long.
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

/// Returns bad values for a parameter; `next` is the following argument.
fn bad(name: &str, next: Option<&Slot>) -> Vec<i32> {
    let short = matches!(next, Some(Slot::Value(len)) if len == "0" || len == "1");
    match name {
        // Output locations have at least four bytes.
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
