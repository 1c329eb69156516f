// Node 20 has no Promise.withResolvers, which the libraries call.
Promise.withResolvers ??= function () {
  let resolve, reject
  const promise = new this((_resolve, _reject) => { resolve = _resolve; reject = _reject })
  return { promise, resolve, reject }
}
