# Untested: no machine that builds images was at hand. Every line is that of the set-up without Docker.
FROM python:3.11-slim
WORKDIR /clipself_d2
COPY . .
RUN pip install --no-cache-dir torch torchvision --index-url https://download.pytorch.org/whl/cpu \
    && CLIPSELF_D2_NO_VENV=1 bash tools/setup_env.sh
ENTRYPOINT ["clipself-d2"]
CMD ["doctor"]
