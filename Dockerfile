# The images of compose.yaml: `worker` has the package and its command line, `test` also the tests and what they need.
FROM python:3.13-slim AS worker
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PYTHONUNBUFFERED=1
# The ID that user redis has in the images of Redis, so that both can read the files of `redis-sessions acl --generate`.
# A new volume takes the owner and mode of the directory that the image has in its place.
RUN useradd --uid 999 --create-home worker && install -d -o worker -m 700 /agent /passwords
WORKDIR /src
COPY . .
RUN pip install '.[cli,prometheus]'
# Not in the source directory, so that the installed package runs.
WORKDIR /
USER worker

FROM worker AS test
USER root
RUN apt-get -qq update && apt-get -qq -y install --no-install-recommends redis-server && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# The tests write their caches next to the source.
RUN pip install '.[all]' && chown -R worker .
USER worker
