// What an OpenAI-compatible server says of its models. Any thread.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace sluice::loadgen {

struct HttpAddress {
  std::string host;
  std::string port;
};
// Of http://host:port, with or without /v1; INVALID_ARGUMENT for anything else.
absl::StatusOr<HttpAddress> ParseHttpUrl(const std::string& url);

// The context of `model` in tokens: `max_model_len` of GET /v1/models, which Sluice and vLLM have
// and OpenAI has not. NOT_FOUND if the server does not say; another error if it does not answer
// within `timeout`.
absl::StatusOr<int> AskMaxModelLen(const std::string& url, const std::string& model,
                                   absl::Duration timeout);

}  // namespace sluice::loadgen
