// Upper bounds of the histograms' buckets. An SLO should be one of them: a quantile is interpolated
// inside its bucket.
#include "metrics/metrics.h"

namespace sluice {

const std::vector<double>& TtftBuckets() {
  static const auto* buckets = new std::vector<double>{
      .01, .025, .05, .1, .2, .3, .5, .75, 1, 1.5, 2, 3, 5, 7.5, 10, 15, 20, 30, 60, 120};
  return *buckets;
}

const std::vector<double>& ItlBuckets() {
  static const auto* buckets =
      new std::vector<double>{.001, .0025, .005, .0075, .01, .015, .02, .025, .03, .04,
                              .05,  .075,  .1,   .15,   .2,  .3,   .5,  1,    2.5};
  return *buckets;
}

const std::vector<double>& E2eBuckets() {
  static const auto* buckets = new std::vector<double>{
      .1, .25, .5, 1, 2, 3, 5, 8, 12, 20, 30, 45, 60, 90, 120, 180, 300, 600, 1200, 1800};
  return *buckets;
}

const std::vector<double>& StageBuckets() {
  static const auto* buckets =
      new std::vector<double>{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1,
                              .25,   .5,     1,     2.5,  5,     10,   25,  50,   60};
  return *buckets;
}

const std::vector<double>& RecoveryBuckets() {
  static const auto* buckets = new std::vector<double>{
      .01, .05, .1, .2, .3, .5, .75, 1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 8, 10, 15, 30, 60};
  return *buckets;
}

const std::vector<double>& TransferBuckets() {
  static const auto* buckets = new std::vector<double>{
      .0005, .001, .0025, .005, .01, .02, .03, .05, .075, .1, .15, .25, .5, 1, 2, 5, 10, 30};
  return *buckets;
}

const std::vector<double>& TokenBuckets() {
  static const auto* buckets = new std::vector<double>{
      1, 16, 64, 256, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072, 262144, 1048576};
  return *buckets;
}

const std::vector<double>& ByteBuckets() {
  static const auto* buckets = [] {
    auto* bounds = new std::vector<double>;
    for (double bytes = 65536; bytes <= 17179869184.0; bytes *= 4) bounds->push_back(bytes);
    return bounds;  // 64 KiB to 16 GiB
  }();
  return *buckets;
}

}  // namespace sluice
