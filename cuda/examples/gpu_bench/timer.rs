//! [`Timer`]: how long one operation takes on the device, launches from the host left out.

use quire_cuda::CudaBackend;
use quire_cuda::driver::Event;
use quire_model::BackendError;

use crate::sizes::Sizes;

/// Two marks in the stream, and how often to measure.
pub(crate) struct Timer {
    begin: Event,
    end: Event,
    sizes: Sizes,
}

/// What a recorded sequence should last: well above the resolution of events, 0.5 µs.
const SEQUENCE_US: f64 = 2000.0;
/// Operations in a recorded sequence at most; recording them takes a few µs each.
const SEQUENCE_MAX: usize = 400;

impl Timer {
    /// For the stream of `backend`.
    pub(crate) fn new(backend: &CudaBackend, sizes: Sizes) -> Result<Self, BackendError> {
        let context = backend.stream().context();
        Ok(Self { begin: Event::new(context)?, end: Event::new(context)?, sizes })
    }

    /// Microseconds that `enqueue` takes on the device. It is called with numbers that count up, so that it can
    /// take other memory each time: in a step, too, the other layers lie between two uses of a weight.
    ///
    /// The operations are recorded into a graph as a step's are, and the graph is repeated; the median counts.
    pub(crate) fn time_us(
        &self,
        backend: &mut CudaBackend,
        enqueue: &mut dyn FnMut(&mut CudaBackend, usize) -> Result<(), BackendError>,
    ) -> Result<f64, BackendError> {
        // The first loads code and makes plans that the step's later layers find made.
        enqueue(backend, 0)?;
        let estimate_us = self.elapsed_us(backend, &mut |backend| enqueue(backend, 1))?;
        let count = match self.sizes.is_smoke {
            true => 2,
            false => ((SEQUENCE_US / estimate_us) as usize).clamp(4, SEQUENCE_MAX),
        };
        backend.stream().begin_capture()?;
        for turn in 0..count {
            enqueue(backend, turn)?;
        }
        let graph = backend.stream().end_capture()?;
        backend.stream().launch_graph(&graph)?;
        let mut samples = Vec::new();
        for _ in 0..self.sizes.rounds {
            let us = self.elapsed_us(backend, &mut |backend| Ok(backend.stream().launch_graph(&graph)?))?;
            samples.push(us / count as f64);
        }
        samples.sort_by(f64::total_cmp);
        Ok(samples[samples.len() / 2])
    }

    fn elapsed_us(
        &self,
        backend: &mut CudaBackend,
        enqueue: &mut dyn FnMut(&mut CudaBackend) -> Result<(), BackendError>,
    ) -> Result<f64, BackendError> {
        backend.stream().record(&self.begin)?;
        enqueue(backend)?;
        backend.stream().record(&self.end)?;
        self.end.synchronize()?;
        // A stand-in's clock may not move between two marks.
        Ok(f64::from(self.end.elapsed_ms(&self.begin)?).max(1e-6) * 1e3)
    }
}
