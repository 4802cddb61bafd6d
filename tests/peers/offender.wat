;; A misbehaving Proxy-Wasm filter. The first letter of a request's field `x-offence` selects what it does: `trap`, `loop`, or `keep`
;; 128 MiB more memory. All other requests pass. offender.c is the same filter as a native module.
(module
    (import "env" "proxy_get_header_map_value" (func $get (param i32 i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (data (i32.const 0) "x-offence")
    (func (export "proxy_abi_version_0_2_1"))
    (func (export "proxy_on_context_create") (param i32 i32))
    (func (export "proxy_on_vm_start") (param i32 i32) (result i32) (i32.const 1))
    (func (export "proxy_on_configure") (param i32 i32) (result i32) (i32.const 1))
    ;; The host passes one value at a time, which is read immediately, so one address is enough.
    (func (export "malloc") (param i32) (result i32) (i32.const 1024))
    (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
        (local $offence i32)
        (local $page i32)
        ;; From the request's head (0). The value's address goes to 16, its length to 20.
        (if (call $get (i32.const 0) (i32.const 0) (i32.const 9) (i32.const 16) (i32.const 20))
            (then (return (i32.const 0))))
        (if (i32.eqz (i32.load (i32.const 20))) (then (return (i32.const 0))))
        (local.set $offence (i32.load8_u (i32.load (i32.const 16))))
        (if (i32.eq (local.get $offence) (i32.const 0x74)) (then unreachable)) ;; t
        (if (i32.eq (local.get $offence) (i32.const 0x6c)) (then (loop $forever (br $forever)))) ;; l
        (local.set $page (memory.grow (i32.const 2048)))
        (if (i32.eq (local.get $page) (i32.const -1)) (then unreachable))
        ;; Memory becomes resident only when it is written.
        (memory.fill (i32.mul (local.get $page) (i32.const 65536)) (i32.const 1) (i32.const 0x8000000))
        (i32.const 0)))
