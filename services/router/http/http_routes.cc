#include "services/router/http/http_routes.h"

#include <ctime>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/clock.h"
#include "services/router/api/plan.h"
#include "services/router/http/generation_answer.h"
#include "services/router/http/json_request.h"
#include "services/router/http/json_writer.h"
#include "services/router/http/openai_format.h"

namespace sluice::router {
namespace {

struct RouteContext {
  const HttpOptions& options;
  ApiContext* context;
  HttpExchange* exchange;
};

void RespondJson(HttpExchange* exchange, absl::StatusOr<std::string> body) {
  if (!body.ok()) return RespondError(exchange, body.status());
  exchange->Respond(200, kJsonContentType, *std::move(body), {});
}

// "a%2Fb" -> "a/b"; malformed escapes stay as they are.
std::string PercentDecode(absl::string_view text) {
  std::string decoded;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size() && absl::ascii_isxdigit(text[i + 1]) &&
        absl::ascii_isxdigit(text[i + 2])) {
      decoded += absl::HexStringToBytes(text.substr(i + 1, 2));
      i += 2;
    } else {
      decoded.push_back(text[i]);
    }
  }
  return decoded;
}

// A missing Content-Type is taken for JSON, but not from a browser (Origin): a foreign page can
// send one without a preflight, and forms with their own types too.
bool HasJsonBody(HttpExchange* exchange) {
  const std::string& type = exchange->request().content_type;
  const absl::string_view essence =
      absl::StripAsciiWhitespace(absl::string_view(type).substr(0, type.find(';')));
  const bool may_be_missing = !exchange->request().has_origin;
  if ((essence.empty() && may_be_missing) || absl::EqualsIgnoreCase(essence, "application/json") ||
      absl::EndsWithIgnoreCase(essence, "+json")) {
    return true;
  }
  RespondError(exchange, MakeError(ErrorKind::kUnsupportedMediaType,
                                   "Content-Type must be application/json", "Content-Type"));
  return false;
}

struct Prepared {
  GenerationPlan plan;
  StreamOptions stream;
};

template <typename Body, typename ParseFn, typename PlanFn>
absl::StatusOr<Prepared> ParseAndPlan(ApiContext* context, const std::string& body,
                                      const std::string& request_id, absl::Time received_at,
                                      ParseFn parse, PlanFn plan) {
  absl::StatusOr<Body> parsed = parse(body);
  if (!parsed.ok()) return parsed.status();
  parsed->request.request_id = request_id;
  parsed->request.received_at = received_at;
  absl::StatusOr<GenerationPlan> planned = plan(*context, parsed->request);
  if (!planned.ok()) return planned.status();
  return Prepared{*std::move(planned), parsed->stream};
}

void StartGeneration(const RouteContext& route, ApiKind kind) {
  if (!HasJsonBody(route.exchange)) return;
  HttpRequest& request = route.exchange->request();
  const int64_t body_bytes = static_cast<int64_t>(request.body.size());
  auto work = [context = route.context, exchange = route.exchange, kind,
               body = std::make_shared<std::string>(std::move(request.body)),
               request_id = request.request_id, received_at = request.received_at] {
    auto prepared = std::make_shared<absl::StatusOr<Prepared>>(
        kind == ApiKind::kChat
            ? ParseAndPlan<ChatBody>(context, *body, request_id, received_at, ParseChatBody,
                                     PlanChat)
            : ParseAndPlan<CompletionBody>(context, *body, request_id, received_at,
                                           ParseCompletionBody, PlanCompletion));
    return [context, exchange, kind, request_id, prepared] {
      if (!prepared->ok()) {
        RespondError(exchange, prepared->status());
        return;
      }
      FormatOptions format;
      format.kind = kind;
      format.stream = (*prepared)->stream;
      format.request_id = request_id;
      format.system_fingerprint = absl::StrCat("sluice-", context->options().version);
      format.created_unix_seconds = std::time(nullptr);
      GenerationAnswer::Start(context, exchange, std::move((*prepared)->plan), std::move(format));
    };
  };
  route.exchange->Prepare(body_bytes, std::move(work));
}

void HandleChat(const RouteContext& route, absl::string_view) {
  StartGeneration(route, ApiKind::kChat);
}
void HandleCompletions(const RouteContext& route, absl::string_view) {
  StartGeneration(route, ApiKind::kCompletion);
}

void AppendModel(const ApiContext& context, const std::string& id, JsonWriter* json) {
  json->BeginObject()
      .Key("id")
      .String(id)
      .Key("object")
      .String("model")
      .Key("created")
      .Int(context.created_unix_seconds())
      .Key("owned_by")
      .String("sluice")
      .Key("root")
      .String(id)
      .Key("parent")
      .Null()
      .Key("max_model_len")
      .Int(context.MaxModelLen())
      .EndObject();
}

void HandleModels(const RouteContext& route, absl::string_view) {
  std::string body;
  JsonWriter json(&body);
  json.BeginObject().Key("object").String("list").Key("data").BeginArray();
  for (const std::string& name : route.context->options().served_model_names) {
    AppendModel(*route.context, name, &json);
  }
  json.EndArray().EndObject();
  RespondJson(route.exchange, std::move(body));
}

void HandleModel(const RouteContext& route, absl::string_view rest) {
  const std::string id = PercentDecode(rest);
  if (!route.context->ServesModel(id)) {
    // Escaped: a path may hold bytes that are not UTF-8.
    RespondError(
        route.exchange,
        MakeError(ErrorKind::kModelNotFound,
                  absl::StrCat("The model `", absl::CHexEscape(id), "` does not exist."), "model"));
    return;
  }
  std::string body;
  JsonWriter json(&body);
  AppendModel(*route.context, id, &json);
  RespondJson(route.exchange, std::move(body));
}

absl::StatusOr<std::string> TokenizeAnswer(const ApiContext& context, const std::string& body) {
  const absl::StatusOr<TokenizeRequest> request = ParseTokenizeBody(body);
  if (!request.ok()) return request.status();
  const absl::StatusOr<std::vector<TokenId>> tokens = Tokenize(context, *request);
  if (!tokens.ok()) return tokens.status();
  std::string out;
  JsonWriter json(&out);
  json.BeginObject()
      .Key("count")
      .Int(static_cast<int64_t>(tokens->size()))
      .Key("max_model_len")
      .Int(context.MaxModelLen())
      .Key("tokens")
      .BeginArray();
  for (TokenId id : *tokens) json.Int(id);
  json.EndArray().Key("token_strs").Null().EndObject();
  return out;
}

absl::StatusOr<std::string> DetokenizeAnswer(const ApiContext& context, const std::string& body) {
  const absl::StatusOr<DetokenizeRequest> request = ParseDetokenizeBody(body);
  if (!request.ok()) return request.status();
  const absl::StatusOr<std::string> text = Detokenize(context, *request);
  if (!text.ok()) return text.status();
  std::string out;
  JsonWriter(&out).BeginObject().Key("prompt").String(*text).EndObject();
  return out;
}

void HandleTokenize(const RouteContext& route, absl::string_view) {
  if (!HasJsonBody(route.exchange)) return;
  std::string& body = route.exchange->request().body;
  const int64_t body_bytes = static_cast<int64_t>(body.size());
  route.exchange->Prepare(body_bytes, [context = route.context, exchange = route.exchange,
                                       body = std::make_shared<std::string>(std::move(body))] {
    // Formatted here as well: it may be megabytes.
    auto out = std::make_shared<absl::StatusOr<std::string>>(TokenizeAnswer(*context, *body));
    return [exchange, out] { RespondJson(exchange, std::move(*out)); };
  });
}

void HandleDetokenize(const RouteContext& route, absl::string_view) {
  if (!HasJsonBody(route.exchange)) return;
  std::string& body = route.exchange->request().body;
  const int64_t body_bytes = static_cast<int64_t>(body.size());
  route.exchange->Prepare(body_bytes, [context = route.context, exchange = route.exchange,
                                       body = std::make_shared<std::string>(std::move(body))] {
    auto out = std::make_shared<absl::StatusOr<std::string>>(DetokenizeAnswer(*context, *body));
    return [exchange, out] { RespondJson(exchange, std::move(*out)); };
  });
}

void HandleLive(const RouteContext& route, absl::string_view) {
  route.exchange->Respond(200, "text/plain; charset=utf-8", "ok\n", {});
}

void HandleReady(const RouteContext& route, absl::string_view) {
  const std::string reason = route.context->dispatcher().NotReadyReason();
  if (reason.empty()) return HandleLive(route, "");
  ApiError error;
  error.kind = ErrorKind::kNoCapacity;
  error.message = reason;
  RespondError(route.exchange, error);
}

void HandleVersion(const RouteContext& route, absl::string_view) {
  std::string body;
  JsonWriter(&body)
      .BeginObject()
      .Key("version")
      .String(route.context->options().version)
      .EndObject();
  RespondJson(route.exchange, std::move(body));
}

struct Route {
  const char* method;
  const char* path;  // without /v1
  bool has_v1;       // also under /v1, which is then the metric's label
  bool is_prefix;    // the handler gets what follows
  const char* label;
  void (*handle)(const RouteContext& route, absl::string_view rest);
};

constexpr Route kRoutes[] = {
    {"POST", "/chat/completions", true, false, "/v1/chat/completions", HandleChat},
    {"POST", "/completions", true, false, "/v1/completions", HandleCompletions},
    {"GET", "/models", true, false, "/v1/models", HandleModels},
    {"GET", "/models/", true, true, "/v1/models", HandleModel},
    {"POST", "/tokenize", false, false, "/tokenize", HandleTokenize},
    {"POST", "/detokenize", false, false, "/detokenize", HandleDetokenize},
    {"GET", "/health", false, false, "/health", HandleReady},
    {"GET", "/livez", false, false, "/livez", HandleLive},
    {"GET", "/readyz", false, false, "/readyz", HandleReady},
    {"GET", "/version", false, false, "/version", HandleVersion},
};

// Null when no path matches; *rest gets what follows a prefix. A slash at the end makes no
// difference.
const Route* FindRoute(absl::string_view path, absl::string_view* rest) {
  absl::ConsumeSuffix(&path, "/");
  absl::string_view without_v1 = path;
  const bool v1 = absl::StartsWith(path, "/v1/") && absl::ConsumePrefix(&without_v1, "/v1");
  for (const Route& route : kRoutes) {
    if (v1 && !route.has_v1) continue;
    if (route.is_prefix) {
      *rest = without_v1;
      if (absl::ConsumePrefix(rest, route.path) && !rest->empty()) return &route;
    } else if (without_v1 == route.path) {
      return &route;
    }
  }
  return nullptr;
}

// For paths of OpenAI's that clients try and that are not here: what is.
std::string UnknownPath(absl::string_view path) {
  absl::string_view name = path;
  absl::ConsumePrefix(&name, "/v1");
  for (const char* const other : {"/responses", "/embeddings"}) {
    if (name != other && !absl::StartsWith(name, absl::StrCat(other, "/"))) continue;
    return absl::StrCat("unknown path ", absl::CHexEscape(path),
                        ": not supported in this version; there is /v1/chat/completions");
  }
  return absl::StrCat("unknown path ", absl::CHexEscape(path));
}

std::string Allowed(const Route& route) {
  return absl::string_view(route.method) == "GET" ? "GET, HEAD" : route.method;
}

}  // namespace

void HandleHttpRequest(const HttpOptions& options, ApiContext* context, HttpExchange* exchange) {
  const HttpRequest& request = exchange->request();
  absl::string_view rest;
  const Route* route = FindRoute(request.path, &rest);
  if (route == nullptr) {
    RespondError(exchange, MakeError(ErrorKind::kUnknownPath, UnknownPath(request.path)));
    return;
  }
  exchange->SetRoute(route->label);
  if (request.method == "OPTIONS" && !options.cors_allow_origin.empty()) {
    exchange->Respond(204, "", "",
                      {{"Access-Control-Allow-Methods", absl::StrCat(route->method, ", OPTIONS")},
                       // The wildcard (OpenAI's client for browsers sends a dozen of its own)
                       // leaves out this one.
                       {"Access-Control-Allow-Headers", "*, authorization"},
                       {"Access-Control-Max-Age", "86400"}});
    return;
  }
  const bool head_of_get = request.method == "HEAD" && absl::string_view(route->method) == "GET";
  if (request.method != route->method && !head_of_get) {
    ApiError error;
    error.kind = ErrorKind::kMethodNotAllowed;
    error.message = absl::StrCat("use ", route->method, " for this path");
    RespondError(exchange, error, {{"Allow", Allowed(*route)}});
    return;
  }
  route->handle(RouteContext{options, context, exchange}, rest);
}

absl::string_view RouteLabel(absl::string_view path) {
  absl::string_view rest;
  const Route* route = FindRoute(path, &rest);
  return route == nullptr ? "other" : route->label;
}

}  // namespace sluice::router
