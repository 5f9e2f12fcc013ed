"""A training step's time and memory side by side: what `kd_memory` keeps beside a benchmark."""

from test_overhead import session_of


def test_a_step_of_the_base_student(benchmark, kd_memory):
    session = session_of("training.batch_size=4")
    draw = next(session.draws(0))

    def step():
        session.step(draw)

    kd_memory(
        step,
        model={"student": session.student},
        optimizer=session.optimizer,
        inputs=[session.data.tensors(), draw.tensors()],
    )
    benchmark.pedantic(step, rounds=5, warmup_rounds=1)
