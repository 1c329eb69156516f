package beamapi_test

// The modules that the face is about to need; removed with its first test.
import (
	_ "connectrpc.com/connect"
	_ "google.golang.org/grpc"
	_ "google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/health/grpc_health_v1"
	_ "golang.org/x/net/http2"
	_ "golang.org/x/net/http2/h2c"
)
