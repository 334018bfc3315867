"""Multi-objective search over precisions: Pareto fronts, knapsacks, Optuna."""
