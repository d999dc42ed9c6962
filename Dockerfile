# MeshNet in a container, for CPUs. Not tested: it was written where no container can be built.
#
#   docker build -t meshnet .
#   docker run --rm -u "$(id -u):$(id -g)" -v "$PWD":/data -v meshnet-cache:/cache meshnet segment scan.nii.gz
#   apptainer build meshnet.sif docker-daemon://meshnet:latest      # and then: apptainer run meshnet.sif segment scan.nii.gz
#
# pip's own index has PyTorch with the libraries of GPUs, several GB. For the small builds of PyTorch for CPUs name their
# index: docker build --build-arg PIP_EXTRA_INDEX_URL=... -t meshnet .
FROM python:3.11-slim

# The kernels are compiled on first use, for the processor that is there, and kept in /cache. Without a compiler PyTorch
# does the work, more slowly.
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*

ARG PIP_EXTRA_INDEX_URL=
WORKDIR /opt/meshnet
COPY requirements.txt ./
RUN pip install --no-cache-dir -r requirements.txt
COPY . .
RUN pip install --no-cache-dir --no-deps . && mkdir -m 1777 /cache

# Any user may run it, one without a name as well.
ENV HOME=/cache MESHNET_CACHE=/cache USER=meshnet ACCELERATE_USE_CPU=1
WORKDIR /data
ENTRYPOINT ["meshnet"]
CMD ["--help"]
