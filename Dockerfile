# task2vec with CUDA kernels: docker build --build-arg WHEEL=dist/….whl . && docker run --gpus all -v "$PWD:/data" IMAGE embed …
# torch's wheels bring the CUDA libraries; the base has the driver's side, OpenMP, and nothing that compiles.
FROM nvidia/cuda:13.0.1-base-ubuntu24.04
ARG WHEEL
RUN apt-get update \
  && apt-get install -y --no-install-recommends python3=3.12.* python3-venv=3.12.* \
  && rm -rf /var/lib/apt/lists/* \
  && useradd --create-home --uid 10001 task2vec
COPY ${WHEEL} /wheels/
RUN python3 -m venv /opt/task2vec \
  && wheel=$(find /wheels -name "*.whl") \
  && /opt/task2vec/bin/pip install --no-cache-dir "${wheel}[plot]"
ENV PATH=/opt/task2vec/bin:$PATH
USER 10001
WORKDIR /data
ENTRYPOINT ["task2vec"]
