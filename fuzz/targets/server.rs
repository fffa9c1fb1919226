//! A whole server in this process, over a model that is simulated: what requests are sent to.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use quire::app::App;
use quire::engine::Engine;
use quire::simulated::{self, Simulation};
use tokio::runtime::Runtime;

const MAX_MODEL_LEN: u32 = 256;
/// Longer than any answer takes; a request that is still there hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs `work` to its end, with the server at hand.
pub fn with_server<F: Future>(work: impl FnOnce(Arc<App>) -> F) -> F::Output {
    static SERVER: OnceLock<(Runtime, Engine, Arc<App>)> = OnceLock::new();
    let (runtime, _, app) = SERVER.get_or_init(|| {
        let simulation = Simulation { max_num_seqs: 64, max_model_len: MAX_MODEL_LEN, step_us: 0.0 };
        let (engine, app) = simulated::start(&simulation).expect("a simulation starts");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        (runtime.expect("a runtime starts"), engine, Arc::new(app))
    });
    runtime.block_on(async {
        tokio::time::timeout(PATIENCE, work(app.clone())).await.expect("every request gets an answer")
    })
}

/// All sequences have ended and all blocks are free: what one request leaves behind, the next one misses.
pub async fn assert_idle(app: &App) {
    for _ in 0..2000 {
        let scheduler = app.engine.stats().scheduler();
        let free = scheduler.num_blocks_free == scheduler.num_blocks_total;
        if app.engine.num_in_flight() == 0 && scheduler.num_running == 0 && free {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("{} sequences are left behind", app.engine.num_in_flight());
}
