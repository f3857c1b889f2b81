// An optimizer on one backend, without the binding: its tensors, plan, workspace and statistics.
#pragma once

#include <cmath>
#include <cstring>
#include <vector>

#include "emulated_tensors.h"

namespace bertadam {

struct Modes {
  const char* name;
  double max_grad_norm;
  bool clip_by_total_norm, skip_nonfinite, null_step, finds_inf;
};
constexpr Modes kModes[] = {
    {"per tensor", 0.7, false, true, false, false},        {"global", 0.7, true, true, false, false},
    {"no clip", 0.0, false, false, false, false},          {"propagate", 0.7, false, false, false, false},
    {"null step", 0.7, false, true, true, false},          {"finds inf", 0.7, false, true, false, true},
    {"no clip, finds inf", 0.0, false, false, false, true}};

struct Side {
  std::vector<Tensor> tensors;
  Plan plan;
  std::vector<double> nodes;
  std::vector<uint32_t> arrivals;
  std::vector<double> survey_nodes;
  std::vector<uint32_t> survey_arrivals;
  std::vector<uint64_t> coefficient_words, postponed, ratios;
  Counters counters{};
  std::vector<double> norms;
  std::vector<float> coefficients, trust_ratios;
  double total_norm = NAN;
  float found_inf = -1.0f;  // what the step finds
  int64_t n_skipped = 0;

  void make_plan_of(const std::vector<int64_t>& sizes, const std::vector<uint32_t>& groups, bool norm,
                    const PlanOptions& options, Random& garbage) {
    plan = make_plan(sizes, groups, std::vector<bool>(sizes.size(), norm), options);
    nodes.resize(2 * static_cast<size_t>(plan.n_nodes) + 2);
    arrivals.assign(static_cast<size_t>(plan.n_nodes), 0);
    survey_nodes.resize(2 * nodes.size());
    survey_arrivals = arrivals;
    ratios.resize(sizes.size());
    coefficient_words.resize(sizes.size() + 8);
    postponed.resize(plan.items.size());
    // What a step may find there: anything of no epoch to come.
    for (auto* const words : {&coefficient_words, &postponed, &ratios}) {
      for (uint64_t& word : *words) word = garbage() | uint64_t{1} << 63;
    }
    norms.assign(sizes.size(), NAN);
    coefficients.assign(sizes.size(), NAN);
    trust_ratios.assign(sizes.size(), NAN);
  }

  StepArgs args(const Modes& mode, const std::vector<TensorRow>& rows, const std::vector<GroupScalars>& groups,
                const std::vector<const void*>& grads, const ScalerArgs& scaler) {
    StepArgs a{};
    a.items = plan.items.data();
    a.tensors = plan.tensors.data();
    a.large = plan.large.data();
    a.groups = groups.data();
    a.rows = rows.data();
    a.grads = grads.data();
    a.n_draws = static_cast<uint32_t>(plan.items.size() / static_cast<size_t>(plan.items_per_draw));
    a.n_leading = static_cast<uint32_t>(plan.n_leading);
    a.n_preparing = static_cast<uint32_t>(plan.n_preparing);
    a.n_tensors = static_cast<uint32_t>(tensors.size());
    a.n_groups = static_cast<uint32_t>(groups.size());
    a.n_large = static_cast<uint32_t>(plan.large.size());
    a.total_tree = plan.n_nodes - tree_nodes(static_cast<int64_t>(tensors.size()));
    a.n_workers = 1;
    a.wait_for_all = plan.waits_for_all;
    a.clip_by_total_norm = mode.clip_by_total_norm;
    a.skip_nonfinite = mode.skip_nonfinite;
    a.skip_if_all_zero = mode.null_step;
    a.rounding_seed = 0x123456789abcdefull;
    a.scaler = scaler;
    if (mode.finds_inf) a.scaler.finds_inf = &found_inf;
    a.workspace = {&counters,        nodes.data(),        arrivals.data(),        coefficient_words.data(),
                   postponed.data(), survey_nodes.data(), survey_arrivals.data(), ratios.data()};
    a.statistics = {norms.data(), &total_norm, coefficients.data(), trust_ratios.data(), &n_skipped};
    return a;
  }
};

}  // namespace bertadam
