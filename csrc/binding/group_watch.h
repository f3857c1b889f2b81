// Notices every change in the parameter groups since their settings were handed to the plans: nothing to do where no
// dict was written, else by the identity of keys and values. A group with a new 'lr' takes 0.15 us; reading and
// comparing settings in Python took 1.1 us for every group (Xeon, 2026-11).
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <vector>

#include "binding/dict_watch.h"

namespace bertadam::binding {

class GroupWatch {
 public:
  // Remembers the groups. A setting that was accepted is a number, a flag, a string, None, a callable, a tuple or a
  // dict, or the learning rate a tensor; all but the last two are what they were while they are the same object. Other
  // values are not ours.
  // `rates_may_change`: whether a new 'lr' needs nobody else's attention.
  void accept(const pybind11::list& groups, bool rates_may_change);

  // Whether the groups are as they were accepted, new learning rates aside where these may change.
  bool matches(const pybind11::list& groups);

  // The learning rates by group; null where none is new since the last call.
  const std::vector<double>* new_rates();

  void traverse(Visit& visit) const;

 private:
  struct Item {
    pybind11::object key, value;
  };
  struct Group {
    pybind11::dict group;
    pybind11::list params;
    size_t n_items, n_params;
  };
  struct Dict {
    pybind11::dict value, content;
  };

  bool same_groups(const pybind11::list& groups) const;
  bool same_params() const;
  bool same_items();
  bool accept_rate(size_t index, Item& item, PyObject* value);
  bool read_tensor_rates();
  bool device_rates_stayed() const;
  bool accept_rate(size_t index, double rate);
  bool same_contents() const;

  DictWatch watch_{DictKind::kGroups};  // of the groups and the dicts in them
  std::vector<Group> groups_;
  std::vector<Item> items_;               // of all groups
  std::vector<pybind11::object> params_;  // of all groups
  std::vector<Dict> dicts_;               // among the items' values
  std::vector<double> rates_;
  std::vector<size_t> tensor_rates_;  // groups whose 'lr' is a tensor on the CPU, which torch's schedulers write
                                      // in place
  // Those whose 'lr' is on a device: the steps know where, and read it there. Their rate here is NaN.
  struct DeviceRate {
    pybind11::object tensor;
    const void* memory;
  };
  std::vector<DeviceRate> device_rates_;
  bool rates_may_change_ = false;
  bool rates_are_new_ = false;
};

}  // namespace bertadam::binding
