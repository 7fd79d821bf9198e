// uses: online_softmax.cuh
// When a problem stops and how far its updates are over-relaxed: the rules of cusink/convergence for checks that run on
// the device. Python passes the constants, so that they are written down once; a test compares both sides.

// The share of a plain update that is taken; ratio = old scaling / plain new scaling. To first order this is
// over-relaxation by omega. The exact form never lowers the dual objective, so that no omega in [1, 2) can diverge.
__device__ inline REAL relaxation(REAL omega, REAL ratio) {
    return omega == 1 ? REAL(1) : (omega - 1) + larger(1 - (omega - 1) * ratio, REAL(0));
}

// The best omega by Young's theory for the rate at which the error fell in one iteration with the current omega.
__device__ inline double estimated_omega(double omega, double rate, double largest) {
    rate = fmax(fmin(rate, 1 - 1e-5), 1e-3);  // fmin and fmax leave no NaN
    double excess = omega - 1;
    double eta = fmin((rate + excess) * (rate + excess) / (rate * omega * omega), 1 - 1e-5);
    double best = rate <= 1.03 * excess ? 1 + 0.9 * excess : 2 / (1 + sqrt(1 - eta));
    return fmax(1.0, fmin(best, largest));
}

// What a problem carries from one check to the next.
struct StopState {
    double omega, error;   // the factor in use, the error at the last check
    double best, stalled;  // the smallest error so far, and the checks since it fell
    double stopped;        // 1: it may be within the tolerance, its error has to be measured; 2: it no longer falls
    double retry;          // the number of checks before which the error is not worth measuring
    double chosen, since;  // the error when omega was last chosen, and the iterations since then
};

struct StopRules {
    double tol, level, progress;        // a stall at an error above `level` is no reason to stop
    double first_omega, largest_omega;  // the omega that is chosen first, and the largest one
    int stalled_checks, adaptive, least_observed;  // the fewest iterations that tell a rate

    // Update the state of a problem whose bound `error` was taken after another `count` iterations; `checks` came before.
    __device__ void observe(StopState& state, double error, int count, int checks) const {
        bool promising = error * (2 - state.omega) <= tol * state.omega && checks >= state.retry;
        bool better = error < progress * state.best;
        state.best = better ? error : state.best;
        state.stalled = better ? 0 : state.stalled + 1;
        state.stopped = error <= tol || promising;
        if (state.stalled >= stalled_checks && state.best <= level) state.stopped = 2;
        state.error = error;
        bool fresh = state.since == 0;  // at the first check of a problem whose error was about 1 at the start
        state.since += count;
        if (state.since < least_observed) return;
        if (adaptive) {
            bool first = state.chosen == double(infinity());
            double rate = exp2(log2(first ? error : error / state.chosen) / state.since);
            double begin = fresh && rate <= 1.03 * (state.omega - 1) ? 1 : first_omega;
            state.omega = first ? begin : estimated_omega(state.omega, rate, largest_omega);
        }
        state.chosen = error;
        state.since = 0;
    }

    // The problem that had `checks` by now turned out not to be within the tolerance.
    __device__ static void refuse(StopState& state, int checks) {
        state.retry = checks + checks / 4;
    }
};
