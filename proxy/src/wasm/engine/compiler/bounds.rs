//! Size limits on a module, checked in one pass before anything is compiled. The compiler process's own limits would
//! stop an oversized module too, but only after the full compile time, and without naming the cause.

use wasmparser::{FunctionBody, Parser, Payload, TypeRef};

use super::OutOfBounds;
use crate::config::model::Compile;

/// Rejects a module that exceeds the limits. Bytes that are not a module pass: the compiler reports what is wrong with
/// them.
pub(super) fn check(module: &[u8], limits: &Compile) -> Result<(), OutOfBounds> {
    let size = module.len() as u64;
    if size > limits.module_size.0 {
        return Err(OutOfBounds::Module(size, limits.module_size));
    }
    // Function indices as in the specification: imported functions come first.
    let mut index = 0;
    for payload in Parser::new(0).parse_all(module).map_while(Result::ok) {
        match payload {
            Payload::ImportSection(section) => {
                let imports = section.into_imports().map_while(Result::ok);
                index += imports.filter(|import| matches!(import.ty, TypeRef::Func(_))).count() as u64;
            }
            Payload::CodeSectionEntry(body) => {
                let size = body.range().len() as u64;
                if size > limits.function_size.0 {
                    return Err(OutOfBounds::Function(index, size, limits.function_size));
                }
                let locals = locals(&body);
                if locals > u64::from(limits.function_locals) {
                    return Err(OutOfBounds::Locals(index, locals, limits.function_locals));
                }
                index += 1;
            }
            _ => {}
        }
    }
    Ok(())
}

/// The number of a function's local variables, excluding parameters. They are declared in groups of one type.
fn locals(body: &FunctionBody<'_>) -> u64 {
    let groups = body.get_locals_reader().into_iter().flatten();
    groups.map_while(Result::ok).map(|(count, _)| u64::from(count)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::units::ByteSize;

    /// A module with an import, a small function, and a function with the given numbers of variables and instructions.
    fn module(locals: usize, instructions: usize) -> Vec<u8> {
        let (locals, body) = ("i64 ".repeat(locals), "nop ".repeat(instructions));
        let text = format!(r#"(module (import "env" "f" (func)) (func) (func (local i32 {locals}) {body}))"#);
        wat::parse_str(text).unwrap()
    }

    #[test]
    fn module_beyond_a_limit_is_rejected_with_the_place() {
        let limits = Compile {
            module_size: ByteSize(4000),
            function_size: ByteSize(1000),
            function_locals: 100,
            ..Compile::default()
        };
        let check = |module: &[u8]| check(module, &limits).map_err(|e| e.to_string());
        assert_eq!(check(&module(99, 900)), Ok(()));
        let said = "its function 2 has 101 local variables, and `compile.function_locals` allows 100";
        assert_eq!(check(&module(100, 900)).unwrap_err(), said);
        let said = "its function 2 has 1106 bytes of code, and `compile.function_size` allows 1000B";
        assert_eq!(check(&module(99, 1100)).unwrap_err(), said);
        let said = check(&module(0, 4000)).unwrap_err();
        assert!(said.ends_with(" bytes, and `compile.module_size` allows 4000B"), "{said}");
    }

    #[test]
    fn groups_of_locals_are_summed() {
        // One function whose locals are two groups of 6000.
        let body = b"\x02\xf0\x2e\x7f\xf0\x2e\x7e\x0b";
        let mut module = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x03\x02\x01\0".to_vec();
        module.extend([10, body.len() as u8 + 2, 1, body.len() as u8]);
        module.extend(body);
        let limits = Compile::default();
        assert_eq!(check(&module, &limits), Err(OutOfBounds::Locals(0, 12_000, limits.function_locals)));
    }

    #[test]
    fn invalid_module_is_left_to_the_compiler() {
        for bytes in [&b""[..], b"#!/bin/sh", &module(1, 1)[..20]] {
            assert_eq!(check(bytes, &Compile::default()), Ok(()));
        }
    }
}
