// config.json: whatever the file says, it is refused or gives dimensions that can be computed with.
#include <cmath>

#include "common/check.h"
#include "modelspec/kv_layout.h"
#include "modelspec/model_spec.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sluice;  // NOLINT: a target is one function
  const absl::StatusOr<ModelSpec> spec =
      ParseModelSpec({reinterpret_cast<const char*>(data), size});
  if (!spec.ok()) {
    SLUICE_CHECK(!spec.status().message().empty());
    return 0;
  }
  SLUICE_CHECK(spec->vocab_size > 0 && spec->hidden_size > 0 && spec->num_hidden_layers > 0);
  SLUICE_CHECK(spec->TotalParameters() > 0);
  SLUICE_CHECK(spec->ActivatedParameters() > 0);
  SLUICE_CHECK(std::isfinite(spec->FlopsPerToken()) && spec->FlopsPerToken() > 0);
  SLUICE_CHECK(std::isfinite(spec->SoftmaxScale()) && std::isfinite(spec->RopeMagnitude()));
  for (double frequency : spec->RopeInvFreq()) SLUICE_CHECK(std::isfinite(frequency));
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    const KvLayout layout = MakeKvLayout(*spec, dtype);
    SLUICE_CHECK(layout.block_bytes() > 0);
    SLUICE_CHECK(
        MakeKvFingerprint(*spec, layout, "digest", "cpu", spec->vocab_size).digest.size() == 32);
  }
  return 0;
}
