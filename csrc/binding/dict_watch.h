// Notices that some dicts were written, without looking into them: reading the three entries of a state dict takes 300
// instructions, and 398 of them 8 us (Xeon, 2026-11).
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <cstdint>
#include <vector>

#include "binding/traversal.h"

namespace bertadam::binding {

// Since Python 3.12 the interpreter tells of writes to watched dicts. It does not tell whose they are, so dicts that
// are written often, as groups are by schedulers, must not make those look written that are not.
enum class DictKind { kStates, kGroups };

class DictWatch {
 public:
  explicit DictWatch(DictKind kind) : kind_(kind) {}

  // Holds the dicts, and begins to watch them.
  void watch(std::vector<pybind11::object> dicts);
  // Takes what was written so far as seen.
  void accept();
  // Whether none of them was written since. It may be false without a reason, never true.
  bool unwritten() const;
  void traverse(Visit& visit) const {
    for (const pybind11::object& dict : dicts_) visit(dict);
  }

 private:
  const DictKind kind_;
  bool is_watching_ = false;
  std::vector<pybind11::object> dicts_;
  std::vector<uint64_t> versions_;  // before Python 3.12: of each dict; since then: of all, as one
};

}  // namespace bertadam::binding
