#include "tests/sim/minimize.h"

#include <algorithm>
#include <cstddef>

namespace sluice::testing {
namespace {

// `all` without [begin, end).
Selection Without(const Selection& all, size_t begin, size_t end) {
  Selection rest(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(begin));
  rest.insert(rest.end(), all.begin() + static_cast<std::ptrdiff_t>(end), all.end());
  return rest;
}

}  // namespace

Selection Minimize(Selection failing, const std::function<bool(const Selection&)>& fails,
                   const MinimizeLimits& limits) {
  int runs_left = limits.max_runs;
  size_t num_parts = 2;
  while (!failing.empty() && runs_left > 0) {
    num_parts = std::min(num_parts, failing.size());
    const size_t part_size = (failing.size() + num_parts - 1) / num_parts;
    bool removed_any = false;
    // From the back: what comes later depends on what came before, seldom the other way round.
    for (size_t end = failing.size(); end > 0 && runs_left > 0;) {
      const size_t begin = end > part_size ? end - part_size : 0;
      Selection rest = Without(failing, begin, end);
      --runs_left;
      if (fails(rest)) {
        failing = std::move(rest);
        removed_any = true;
      }
      end = begin;
    }
    if (part_size == 1 && !removed_any) break;
    if (!removed_any) num_parts *= 2;
  }
  return failing;
}

}  // namespace sluice::testing
