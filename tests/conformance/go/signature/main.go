// A filter that admits webhooks by signature: a header contains the HMAC-SHA256 of the body, in hex after `sha256=`. It
// uses Go's standard library and no SDK: the host's functions are imported directly.
//
// The configuration is JSON: {"header": "x-hub-signature-256", "secret": "WEBHOOK_SECRET"}; `secret` names an
// environment variable.
package main

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"
	"unsafe"
)

//go:wasmimport env proxy_get_buffer_bytes
func getBuffer(buffer, start, max uint32, data, size *uint32) int32

//go:wasmimport env proxy_get_header_map_value
func getHeader(headers uint32, name unsafe.Pointer, nameSize uint32, data, size *uint32) int32

//go:wasmimport env proxy_replace_header_map_value
func setHeader(headers uint32, name unsafe.Pointer, nameSize uint32, value unsafe.Pointer, valueSize uint32) int32

//go:wasmimport env proxy_send_local_response
func sendLocalResponse(code uint32, details unsafe.Pointer, detailsSize uint32, body unsafe.Pointer, bodySize uint32,
	headers unsafe.Pointer, headersSize uint32, grpc int32) int32

//go:wasmimport env proxy_define_metric
func defineMetric(kind uint32, name unsafe.Pointer, nameSize uint32, id *uint32) int32

//go:wasmimport env proxy_increment_metric
func incrementMetric(id uint32, by int64) int32

const (
	actionContinue = 0
	actionPause    = 1

	requestHeaders = 0
	requestBody    = 0
	configuration  = 7
)

var (
	// Allocated memory for the host to write to, until it is taken: keeps Go from freeing it.
	given = map[uint32][]byte{}

	config struct {
		Header string `json:"header"`
		Secret string `json:"secret"`
	}
	secret []byte
	// Counters by result.
	counters = map[bool]uint32{}
	// Signatures of in-flight requests.
	shown = map[uint32][]byte{}
)

func main() {}

//go:wasmexport proxy_abi_version_0_2_1
func abiVersion() {}

//go:wasmexport proxy_on_memory_allocate
func allocate(size uint32) unsafe.Pointer {
	bytes := make([]byte, size)
	at := unsafe.Pointer(unsafe.SliceData(bytes))
	given[uint32(uintptr(at))] = bytes
	return at
}

// take returns data that the host has written, once.
func take(at, size uint32) []byte {
	bytes := given[at]
	delete(given, at)
	return bytes[:size]
}

func text(s string) (unsafe.Pointer, uint32) {
	return unsafe.Pointer(unsafe.StringData(s)), uint32(len(s))
}

func buffer(which, size uint32) []byte {
	var at, got uint32
	if getBuffer(which, 0, size, &at, &got) != 0 || got == 0 {
		return nil
	}
	return take(at, got)
}

func header(name string) string {
	var at, size uint32
	ptr, length := text(name)
	if getHeader(requestHeaders, ptr, length, &at, &size) != 0 || size == 0 {
		return ""
	}
	return string(take(at, size))
}

func put(name, value string) {
	namePtr, nameLen := text(name)
	valuePtr, valueLen := text(value)
	setHeader(requestHeaders, namePtr, nameLen, valuePtr, valueLen)
}

// refuse sends a local response with the reason, as JSON.
func refuse(code uint32, reason string) int32 {
	incrementMetric(counters[false], 1)
	body, _ := json.Marshal(map[string]string{"error": reason})
	name, value := "content-type", "application/json"
	headers := binary.LittleEndian.AppendUint32(nil, 1)
	headers = binary.LittleEndian.AppendUint32(headers, uint32(len(name)))
	headers = binary.LittleEndian.AppendUint32(headers, uint32(len(value)))
	headers = append(headers, name+"\x00"+value+"\x00"...)
	ptr, length := text(reason)
	sendLocalResponse(code, ptr, length, unsafe.Pointer(&body[0]), uint32(len(body)),
		unsafe.Pointer(&headers[0]), uint32(len(headers)), -1)
	return actionPause
}

//go:wasmexport proxy_on_configure
func onConfigure(root, size uint32) int32 {
	if err := json.Unmarshal(buffer(configuration, size), &config); err != nil {
		fmt.Fprintln(os.Stderr, "invalid configuration:", err)
		return 0
	}
	value, there := os.LookupEnv(config.Secret)
	if !there {
		fmt.Fprintf(os.Stderr, "environment variable %q is not set\n", config.Secret)
		return 0
	}
	secret = []byte(value)
	for good, name := range map[bool]string{true: "signature.good", false: "signature.bad"} {
		var id uint32
		ptr, length := text(name)
		if defineMetric(0, ptr, length, &id) != 0 {
			return 0
		}
		counters[good] = id
	}
	fmt.Println("signatures are checked from", time.Now().UTC().Format(time.RFC3339))
	return 1
}

//go:wasmexport proxy_on_request_headers
func onRequestHeaders(context, count, end uint32) int32 {
	signature, err := hex.DecodeString(strings.TrimPrefix(header(config.Header), "sha256="))
	switch {
	case err != nil:
		return refuse(400, err.Error())
	case len(signature) == 0:
		return refuse(401, "missing signature")
	}
	delivery := make([]byte, 8)
	if _, err := rand.Read(delivery); err != nil {
		return refuse(500, err.Error())
	}
	put("x-delivery", hex.EncodeToString(delivery))
	shown[context] = signature
	if end != 0 {
		return check(context, nil)
	}
	return actionContinue
}

//go:wasmexport proxy_on_request_body
func onRequestBody(context, size, end uint32) int32 {
	if end == 0 {
		return actionPause
	}
	return check(context, buffer(requestBody, size))
}

func check(context uint32, body []byte) int32 {
	mac := hmac.New(sha256.New, secret)
	mac.Write(body)
	if !hmac.Equal(mac.Sum(nil), shown[context]) {
		return refuse(403, "invalid signature")
	}
	incrementMetric(counters[true], 1)
	return actionContinue
}

//go:wasmexport proxy_on_log
func onLog(context uint32) { delete(shown, context) }
