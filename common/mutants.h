// Faults that a test plants in a protocol, to show that its simulation would find them. A room that
// has some names them in an enum whose first value is kNone; only a build with SLUICE_MUTANTS
// defined (the mutant libraries of tests/) can plant one. Everywhere else Planted is a constant
// false and the compiler drops what it guards. One thread; plant before the code under test runs.
#pragma once

namespace sluice {

#ifdef SLUICE_MUTANTS
template <typename Mutant>
inline Mutant planted_mutant = Mutant::kNone;

template <typename Mutant>
bool Planted(Mutant mutant) {
  return planted_mutant<Mutant> == mutant;
}
#else
template <typename Mutant>
constexpr bool Planted(Mutant) {
  return false;
}
#endif

}  // namespace sluice
