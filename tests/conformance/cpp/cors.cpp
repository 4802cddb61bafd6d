// A CORS filter: answers preflight requests and tells browsers which origins may read responses. It uses C++'s standard
// library and no SDK: the host's functions are imported directly.
//
// The configuration has one option per line: `origin https://a.test`, `methods GET, PUT`, `max-age 600`. The
// environment variable CORS_ORIGIN is another origin.

#include <charconv>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#define IMPORT(name) extern "C" __attribute__((import_module("env"), import_name(#name)))
#define EXPORT(name) extern "C" __attribute__((export_name(#name)))

IMPORT(proxy_get_buffer_bytes) uint32_t getBuffer(uint32_t, uint32_t start, uint32_t max, char **data, size_t *size);
IMPORT(proxy_get_header_map_value)
uint32_t getHeader(uint32_t map, const char *name, size_t length, char **data, size_t *size);
IMPORT(proxy_get_header_map_pairs) uint32_t getHeaders(uint32_t map, char **data, size_t *size);
IMPORT(proxy_add_header_map_value)
uint32_t addHeader(uint32_t map, const char *name, size_t nameLength, const char *value, size_t valueLength);
IMPORT(proxy_remove_header_map_value) uint32_t removeHeader(uint32_t map, const char *name, size_t length);
IMPORT(proxy_send_local_response)
uint32_t sendLocalResponse(uint32_t code, const char *details, size_t detailsLength, const char *body, size_t bodyLength,
                           const char *headers, size_t headersLength, int32_t grpc);

namespace {

enum Map { request = 0, response = 2 };
enum { configuration = 7 };
enum Action { go_on = 0, pause = 1 };

using Headers = std::vector<std::pair<std::string, std::string>>;

// Data that the host has written to memory of the C library, until it is freed.
struct Given {
  char *data = nullptr;
  size_t size = 0;
  ~Given() { free(data); }
  std::string_view view() const { return {data, size}; }
};

struct Options {
  std::set<std::string> origins;
  std::string methods = "GET, HEAD, POST";
  unsigned max_age = 5;
} options;

// Origins that may read the response, by in-flight request.
std::map<uint32_t, std::string> allowed;

std::string header(Map map, std::string_view name) {
  Given value;
  if (getHeader(map, name.data(), name.size(), &value.data, &value.size) != 0) return {};
  return std::string(value.view());
}

void add(Map map, std::string_view name, std::string_view value) {
  addHeader(map, name.data(), name.size(), value.data(), value.size());
}

std::string encoded(const Headers &headers) {
  std::string bytes;
  const auto number = [&](uint32_t n) { bytes.append(reinterpret_cast<const char *>(&n), sizeof n); };
  number(headers.size());
  for (const auto &[name, value] : headers) {
    number(name.size());
    number(value.size());
  }
  for (const auto &[name, value] : headers) bytes.append(name).append(1, '\0').append(value).append(1, '\0');
  return bytes;
}

}  // namespace

EXPORT(proxy_abi_version_0_2_1) void version() {}

EXPORT(proxy_on_configure) int32_t onConfigure(uint32_t, uint32_t size) {
  Given text;
  if (getBuffer(configuration, 0, size, &text.data, &text.size) != 0) return 0;
  std::istringstream lines{std::string(text.view())};
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string name, value;
    words >> name;
    std::getline(words >> std::ws, value);
    if (name == "origin") {
      options.origins.insert(value);
    } else if (name == "methods") {
      options.methods = value;
    } else if (name == "max-age") {
      const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), options.max_age);
      if (error != std::errc() || end != value.data() + value.size()) {
        fprintf(stderr, "`%s` is not a number of seconds\n", value.c_str());
        return 0;
      }
    } else if (!name.empty()) {
      fprintf(stderr, "unknown option `%s`\n", name.c_str());
      return 0;
    }
  }
  if (const char *origin = getenv("CORS_ORIGIN")) options.origins.insert(origin);
  printf("%zu origins\n", options.origins.size());
  fflush(stdout);
  return 1;
}

EXPORT(proxy_on_request_headers) int32_t onRequestHeaders(uint32_t context, uint32_t, uint32_t) {
  const std::string origin = header(request, "origin");
  if (!options.origins.contains(origin)) return go_on;
  allowed[context] = origin;
  const std::string method = header(request, "access-control-request-method");
  if (header(request, ":method") != "OPTIONS" || method.empty()) return go_on;
  const std::string headers = encoded({
      {"access-control-allow-methods", options.methods},
      {"access-control-allow-headers", header(request, "access-control-request-headers")},
      {"access-control-max-age", std::to_string(options.max_age)},
  });
  sendLocalResponse(204, "preflight", 9, nullptr, 0, headers.data(), headers.size(), -1);
  return pause;
}

EXPORT(proxy_on_response_headers) int32_t onResponseHeaders(uint32_t context, uint32_t, uint32_t) {
  // Overrides the upstream's own header.
  Given given;
  getHeaders(response, &given.data, &given.size);
  for (const char *name : {"access-control-allow-origin", "access-control-allow-credentials"}) {
    if (given.view().find(name) != std::string_view::npos) removeHeader(response, name, std::string_view(name).size());
  }
  if (const auto found = allowed.find(context); found != allowed.end()) {
    add(response, "access-control-allow-origin", found->second);
  }
  add(response, "vary", "origin");
  return go_on;
}

EXPORT(proxy_on_log) void onLog(uint32_t context) { allowed.erase(context); }
