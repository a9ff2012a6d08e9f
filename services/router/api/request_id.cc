#include "services/router/api/request_id.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/ids.h"
#include "common/random.h"

namespace sluice::router {
namespace {

constexpr size_t kMaxRequestIdBytes = 128;

bool MayBeInId(char c) {
  return absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
         absl::string_view("-_.:/+=").find(c) != absl::string_view::npos;
}

}  // namespace

std::string RequestIdOr(absl::string_view sent) {
  const bool usable = !sent.empty() && sent.size() <= kMaxRequestIdBytes &&
                      std::all_of(sent.begin(), sent.end(), MayBeInId);
  return usable ? std::string(sent) : RandomId128<RequestId>().ToString();
}

}  // namespace sluice::router
