// A sluice-manifest.json, which may come from outside with a model: refused, or one whose parts fit
// together and that names plain files only.
#include <string>

#include "common/check.h"
#include "engine/weights/manifest.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto manifest = sluice::ParseManifest({reinterpret_cast<const char*>(data), size});
  if (!manifest.ok()) {
    SLUICE_CHECK(!manifest.status().message().empty());
    return 0;
  }
  SLUICE_CHECK(!manifest->shards.empty());
  for (const sluice::ManifestShard& shard : manifest->shards) {
    SLUICE_CHECK(!shard.name.empty() && shard.name.find('/') == std::string::npos);
  }
  if (manifest->has_golden) {
    const sluice::GoldenAnswer& golden = manifest->golden;
    SLUICE_CHECK(golden.output.size() == golden.margins.size() && !golden.prompt.empty());
    for (const sluice::TokenId id : golden.prompt) SLUICE_CHECK(id >= 0);
  }
  return 0;
}
