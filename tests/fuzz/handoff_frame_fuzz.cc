// Frames of the handoff protocol. Input: a frame without its check, which is added here, so that
// damage reaches the parser behind the check too.
#include <xxhash.h>

#include <string>
#include <variant>

#include "common/check.h"
#include "common/utf8.h"
#include "kvtransfer/handoff/messages.h"

namespace sluice::handoff {
namespace {

// What was read says the same when it is written. Compared as bytes: a NaN is not equal to itself.
void CheckWrittenAgain(const Frame& frame, const std::string& bytes) {
  const std::string again = Encode(frame);
  if (const auto* cancel = std::get_if<Cancel>(&frame.body)) {
    // Its reason is mended where it is read.
    SLUICE_CHECK(IsValidUtf8(cancel->reason));
    SLUICE_CHECK(Encode(*Decode(again)) == again);
  } else {
    SLUICE_CHECK(again == bytes);
  }
}

}  // namespace
}  // namespace sluice::handoff

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sluice::handoff;  // NOLINT: a target is one function
  std::string bytes(reinterpret_cast<const char*>(data), size);
  if (Decode(bytes).ok()) CheckWrittenAgain(*Decode(bytes), bytes);

  const uint32_t check = static_cast<uint32_t>(XXH3_64bits(bytes.data(), bytes.size()));
  for (int i = 0; i < 4; ++i) bytes.push_back(static_cast<char>(check >> (8 * i)));
  const absl::StatusOr<Frame> frame = Decode(bytes);
  if (!frame.ok()) {
    SLUICE_CHECK(!frame.status().message().empty());
    return 0;
  }
  CheckWrittenAgain(*frame, bytes);
  SLUICE_CHECK(BodyName(frame->body)[0] != '\0');
  return 0;
}
