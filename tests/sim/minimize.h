// Delta debugging (Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input"):
// given a list that fails, a small sublist that still fails. Pure; knows nothing of what the
// entries are.
#pragma once

#include <functional>
#include <vector>

namespace sluice::testing {

// Entries of a script by their place in it, ascending.
using Selection = std::vector<int>;

struct MinimizeLimits {
  int max_runs = 500;
};

// A subset of `failing` for which `fails` is true. Unless max_runs cut the search short, leaving
// any single entry out of it makes the failure go away. `failing` itself is not run again.
// REQUIRES: fails(failing).
Selection Minimize(Selection failing, const std::function<bool(const Selection&)>& fails,
                   const MinimizeLimits& limits = {});

}  // namespace sluice::testing
