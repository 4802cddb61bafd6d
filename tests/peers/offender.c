/* offender.wat as a native dynamic module for Envoy, using its documented C ABI. The first letter of a request's field `x-offence`
   selects the misbehaviour; all other requests pass. */
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const char *data;
    size_t length;
} buffer;

/* Provided by Envoy. */
bool envoy_dynamic_module_callback_http_get_header(void *stream, int map, buffer key, buffer *value, size_t index, size_t *count);

const char *envoy_dynamic_module_on_program_init(void) { return "v0.2.0"; }

/* Volatile, so that the compiler does not optimise it away. */
static char *volatile kept;
static int nothing;
void *envoy_dynamic_module_on_http_filter_config_new(void *host, buffer name, buffer config) { return &nothing; }
void envoy_dynamic_module_on_http_filter_config_destroy(void *config) {}
void *envoy_dynamic_module_on_http_filter_new(void *config, void *stream) { return &nothing; }
void envoy_dynamic_module_on_http_filter_destroy(void *filter) {}

int envoy_dynamic_module_on_http_filter_request_headers(void *stream, void *filter, bool end) {
    buffer key = {"x-offence", 9}, value = {NULL, 0};
    if (!envoy_dynamic_module_callback_http_get_header(stream, 0, key, &value, 0, NULL) || value.length == 0)
        return 0;
    if (value.data[0] == 't')
        abort();
    if (value.data[0] == 'l')
        for (volatile bool forever = true; forever;) {
        }
    kept = malloc(128 << 20);
    if (kept == NULL)
        abort();
    memset(kept, 1, 128 << 20);
    return 0;
}

/* Envoy requires all of these. Where the result has a meaning, 0 is `continue`. */
#define UNUSED(name) int envoy_dynamic_module_on_http_filter_##name(void) { return 0; }
UNUSED(request_body)
UNUSED(request_trailers)
UNUSED(response_headers)
UNUSED(response_body)
UNUSED(response_trailers)
UNUSED(stream_complete)
UNUSED(http_callout_done)
UNUSED(http_stream_headers)
UNUSED(http_stream_data)
UNUSED(http_stream_trailers)
UNUSED(http_stream_complete)
UNUSED(http_stream_reset)
UNUSED(scheduled)
UNUSED(downstream_above_write_buffer_high_watermark)
UNUSED(downstream_below_write_buffer_low_watermark)
