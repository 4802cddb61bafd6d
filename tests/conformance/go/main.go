// The conformance cases in a module built with the standard Go toolchain (GOOS=wasip1, -buildmode=c-shared). It uses no
// SDK: the host's functions are imported directly, and their results are written to memory from Go's allocator.
//
// See ../README.md for the module's protocol; ../generate.py writes cases.go.
package main

import (
	"fmt"
	"strings"
	"unsafe"
)

// Case is one case, with one script per callback, in the expected order.
type Case struct {
	name   string
	phases []Phase
	done   int
	failed string
}

// Phase is a case's script for one callback.
type Phase struct {
	callback int
	run      func(arg0, arg1, arg2, arg3, arg4 int32) int32
}

var (
	// The running or most recently requested case, and its stream.
	current *Case
	stream  int32
	// Allocated memory that the host has written to: keeps Go from freeing it.
	given = map[unsafe.Pointer][]byte{}
	// Where host functions write their results.
	memory [4096]byte
)

const (
	EQ = iota
	NE
	LT
	GT
	GE
)

func main() {}

//go:wasmexport proxy_abi_version_0_2_0
func version() {}

//go:wasmexport malloc
func malloc(size int32) unsafe.Pointer {
	bytes := make([]byte, size)
	at := unsafe.Pointer(unsafe.SliceData(bytes))
	given[at] = bytes
	return at
}

func address(at int32) unsafe.Pointer { return unsafe.Pointer(uintptr(uint32(at))) }

func scratch(at int32) int32 { return int32(uintptr(unsafe.Pointer(&memory))) + at }

func text(s string) int32 { return int32(uintptr(unsafe.Pointer(unsafe.StringData(s)))) }

func load8(at int32) int32       { return int32(*(*uint8)(address(at))) }
func load16(at int32) int32      { return int32(*(*uint16)(address(at))) }
func load32(at int32) int32      { return *(*int32)(address(at)) }
func load64(at int32) int64      { return *(*int64)(address(at)) }
func store32(at int32, to int32) { *(*int32)(address(at)) = to }

func ignore(int64) {}

func bytesAt(at, size int32) string {
	if size == 0 {
		return ""
	}
	return unsafe.String((*byte)(address(at)), size)
}

func isNot(line, comparison int, got, wanted int64) bool {
	is := [...]bool{got == wanted, got != wanted, got < wanted, got > wanted, got >= wanted}[comparison]
	if !is {
		current.failed = fmt.Sprintf("line %d: got %d", line, got)
	}
	return !is
}

func differs(line int, at, size, wanted, wantedSize int32) bool {
	got := bytesAt(at, size)
	if got == bytesAt(wanted, wantedSize) {
		return false
	}
	current.failed = fmt.Sprintf("line %d: got %q", line, got)
	return true
}

// next runs the case's next script if it is for this callback.
func (c *Case) next(callback int, args [5]int32) int32 {
	if c.done == len(c.phases) || c.phases[c.done].callback != callback {
		return 0
	}
	c.done++
	return c.phases[c.done-1].run(args[0], args[1], args[2], args[3], args[4])
}

// early handles a callback that precedes any request: every case that expects it runs.
func early(callback int, args ...int32) {
	asked := current
	for nth := range cases {
		current = &cases[nth]
		current.next(callback, [5]int32(append(args, make([]int32, 5-len(args))...)))
	}
	current = asked
}

// on handles any other callback.
func on(callback int, args ...int32) int32 {
	if current == nil {
		return 0
	}
	return current.next(callback, [5]int32(append(args, make([]int32, 5-len(args))...)))
}

// onStream handles a callback of a stream.
func onStream(callback int, args ...int32) int32 {
	if args[0] != stream {
		return 0
	}
	return on(callback, args...)
}

func header(name string) (string, bool) {
	status := proxy_get_header_map_value(0, text(name), int32(len(name)), scratch(4000), scratch(4004))
	return strings.Clone(bytesAt(load32(scratch(4000)), load32(scratch(4004)))), status == 0
}

func reply(code int32, body string) {
	proxy_send_local_response(code, 0, 0, text(body), int32(len(body)), 0, 0, -1)
}

func find(name string) *Case {
	for nth := range cases {
		if cases[nth].name == name {
			return &cases[nth]
		}
	}
	return nil
}

func verdict(c *Case) (int32, string) {
	switch {
	case c == nil:
		return 404, "no such case"
	case c.failed != "":
		return 500, c.failed
	case c.done < len(c.phases):
		return 404, fmt.Sprintf("only %d of its callbacks came", c.done)
	}
	return 200, "ok"
}

//go:wasmexport proxy_on_request_headers
func onRequestHeaders(context, count, end int32) int32 {
	if _, asked := header("x-cases"); asked {
		names := make([]string, len(cases))
		for nth := range cases {
			names[nth] = cases[nth].name
		}
		reply(200, strings.Join(names, "\n"))
		return 0
	}
	if name, asked := header("x-result"); asked {
		reply(verdict(find(name)))
		return 0
	}
	if name, asked := header("x-case"); asked {
		clear(given)
		current, stream = find(name), context
	}
	return onStream(on_request_headers, context, count, end)
}

//go:wasmexport proxy_on_request_body
func onRequestBody(context, size, end int32) int32 {
	if size == 0 {
		return 0
	}
	return onStream(on_request_body, context, size, end)
}

//go:wasmexport proxy_on_request_trailers
func onRequestTrailers(context, count int32) int32 {
	return onStream(on_request_trailers, context, count)
}

//go:wasmexport proxy_on_response_headers
func onResponseHeaders(context, count, end int32) int32 {
	return onStream(on_response_headers, context, count, end)
}

//go:wasmexport proxy_on_response_body
func onResponseBody(context, size, end int32) int32 {
	if size == 0 {
		return 0
	}
	return onStream(on_response_body, context, size, end)
}

//go:wasmexport proxy_on_response_trailers
func onResponseTrailers(context, count int32) int32 {
	return onStream(on_response_trailers, context, count)
}

//go:wasmexport proxy_on_vm_start
func onVmStart(root, size int32) int32 {
	early(on_vm_start, root, size)
	return 1
}

//go:wasmexport proxy_on_configure
func onConfigure(root, size int32) int32 {
	early(on_configure, root, size)
	return 1
}

//go:wasmexport proxy_on_context_create
func onContextCreate(context, parent int32) { early(on_context_create, context, parent) }

//go:wasmexport proxy_on_tick
func onTick(root int32) { on(on_tick, root) }

//go:wasmexport proxy_on_queue_ready
func onQueueReady(root, queue int32) { on(on_queue_ready, root, queue) }

//go:wasmexport proxy_on_http_call_response
func onHttpCallResponse(root, call, headers, size, trailers int32) {
	on(on_http_call_response, root, call, headers, size, trailers)
}

//go:wasmexport proxy_on_grpc_receive_initial_metadata
func onGrpcReceiveInitialMetadata(root, call, count int32) {
	on(on_grpc_receive_initial_metadata, root, call, count)
}

//go:wasmexport proxy_on_grpc_receive
func onGrpcReceive(root, call, size int32) { on(on_grpc_receive, root, call, size) }

//go:wasmexport proxy_on_grpc_receive_trailing_metadata
func onGrpcReceiveTrailingMetadata(root, call, count int32) {
	on(on_grpc_receive_trailing_metadata, root, call, count)
}

//go:wasmexport proxy_on_grpc_close
func onGrpcClose(root, call, status int32) { on(on_grpc_close, root, call, status) }

//go:wasmexport proxy_on_done
func onDone(context int32) int32 {
	onStream(on_done, context)
	return 1
}

//go:wasmexport proxy_on_log
func onLog(context int32) { onStream(on_log, context) }

//go:wasmexport proxy_on_delete
func onDelete(context int32) { onStream(on_delete, context) }
