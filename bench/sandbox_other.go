//go:build !linux

package main

import (
	"context"
	"errors"
)

func measureSandbox(context.Context, *bench) ([]result, error) {
	return nil, errors.New("sandboxes need Linux")
}
